"""Prompt tuning in PEFT's files (PEFT's numbers: the goldens)."""

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
from minift.peft.prompt import Prompt

LLAMA = Path(__file__).parents[1] / "golden" / "llama_gqa"  # 3 layers, 2 kv heads of 6, D = 24


def saved(tmp_path):
    model = attach(load_model(LLAMA), Prompt(prompt_tokens=4))
    save_adapter(model, tmp_path / "a")
    return model, strict_json.read(tmp_path / "a" / CONFIG)


def test_the_folder_by_hand(tmp_path):
    model, data = saved(tmp_path)
    file = safetensors.read(tmp_path / "a" / TENSORS)
    assert {key: tuple(entry.shape) for key, entry in file.tensors.items()} == {
        "prompt_embeddings": (4, 24)
    }
    wanted = {
        "peft_type": "PROMPT_TUNING",
        "num_virtual_tokens": 4,
        "token_dim": 24,
        "num_layers": 3,
    }
    assert {key: data[key] for key in wanted} == wanted
    again = load_adapter(load_model(LLAMA), tmp_path / "a")
    tokens = torch.arange(14).view(2, 7)
    torch.testing.assert_close(again(tokens), model(tokens), rtol=0, atol=1e-6)


def test_a_size_that_the_tensors_contradict_is_refused(tmp_path):
    saved(tmp_path)
    place = tmp_path / "a" / CONFIG
    place.write_text(
        place.read_text().replace('"num_virtual_tokens": 4', '"num_virtual_tokens": 5')
    )
    with pytest.raises(FormatError, match="prompt_embeddings is"):
        load_adapter(load_model(LLAMA), tmp_path / "a")


def test_what_each_option_means_when_it_is_absent():
    problems = []
    FORMATS[Prompt].read({}, problems)
    assert problems[0] == "num_virtual_tokens is None, not a whole number"
