"""What the three soft prompts promise of their folders in PEFT's form, each with its own config."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import FormatError
from minift.formats import safetensors, strict_json
from minift.interop.adapter_files import CONFIG, TENSORS, load_adapter, save_adapter
from minift.interop.methods import FORMATS
from minift.peft.methods import attach

LLAMA = Path(__file__).parents[1] / "golden" / "llama_gqa"  # 3 layers, 2 kv heads of 6, D = 24


class SoftPromptFolder:
    """A folder that `save` writes for a method's config of 4 virtual tokens."""

    def __init__(self, folder):
        self.folder = folder

    def save(self, config):
        model = attach(load_model(LLAMA), config)
        save_adapter(model, self.folder)
        return model

    def check_by_hand(self, config, shape, options):
        model = self.save(config)
        data, file = strict_json.read(self.folder / CONFIG), safetensors.read(self.folder / TENSORS)
        shapes = {key: tuple(entry.shape) for key, entry in file.tensors.items()}
        assert shapes == {"prompt_embeddings": shape}
        assert {key: data[key] for key in options} == options
        again = load_adapter(load_model(LLAMA), self.folder)
        tokens = torch.arange(14).view(2, 7)
        torch.testing.assert_close(again(tokens), model(tokens), rtol=0, atol=1e-6)

    def check_contradicted_size(self, config):
        self.save(config)
        place, key = self.folder / CONFIG, '"num_virtual_tokens": '
        place.write_text(place.read_text().replace(f"{key}4", f"{key}5"))
        with pytest.raises(FormatError, match="prompt_embeddings is"):
            load_adapter(load_model(LLAMA), self.folder)

    def check_absent_size(self, config):
        problems = []
        FORMATS[type(config)].read({}, problems)
        assert problems[0] == "num_virtual_tokens is None, not a whole number"


@pytest.fixture
def soft_prompt_folder(tmp_path):
    return SoftPromptFolder(tmp_path / "a")
