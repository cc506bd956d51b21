"""(IA)³ in PEFT's files: what they cannot say is refused (PEFT's numbers: the goldens)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError, FormatError
from minift.formats import safetensors
from minift.interop.adapter_files import load_adapter, save_adapter
from minift.peft.ia3 import IA3
from minift.peft.methods import attach
from minift.peft.slots import changes

GOLDEN = Path(__file__).parents[1] / "golden"


def model(name="llama_biased"):
    return load_model(GOLDEN / name, dtype=torch.float64)


@pytest.mark.parametrize("config", [IA3((), ("q",)), IA3(("v",), ("q",)), IA3((), ("q", "k", "v"))])
def test_inputs_of_a_fused_matrix_are_saved_as_one_or_not_at_all(config, tmp_path):
    """GPT-2 has one matrix for q, k and v, and PEFT one vector for its input."""
    adapted = attach(model("families/gpt2"), config)
    if config.inputs == ("q", "k", "v"):
        save_adapter(adapted, tmp_path / "equal")
    with torch.no_grad():
        next(change for _, _, change in changes(adapted)).l.add_(1)
    with pytest.raises(ConfigError, match=r"inputs of a part of transformer\.h\.0\.attn\.c_attn"):
        save_adapter(adapted, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_number_in_place_of_a_vector_is_refused(tmp_path):
    save_adapter(attach(model(), IA3()), tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    file = safetensors.read(path)
    tensors = {key: file.load(key) for key in file.tensors}
    tensors[next(iter(tensors))] = torch.tensor(1.0)
    safetensors.write(path, tensors)
    with pytest.raises(FormatError, match=r"is \(\), not"):
        load_adapter(model(), tmp_path / "a")
