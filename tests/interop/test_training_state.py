"""A training state is sized before anything is made (how it goes on: test_adapter_files.py)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import FormatError
from minift.formats import safetensors
from minift.interop.adapter_files import load_adapter, save_adapter
from minift.interop.training_state import STATE
from minift.peft.lora import LoRA
from minift.peft.methods import attach

GOLDEN = Path(__file__).parents[1] / "golden"


def test_a_state_of_truth_values_is_refused_and_nothing_is_decomposed(tmp_path, monkeypatch):
    base = GOLDEN / "llama_gqa"
    config = LoRA(rank=2, lora_init="pissa", targets=("q",))
    save_adapter(attach(load_model(base), config), tmp_path / "a")
    monkeypatch.setattr(torch.linalg, "svd", None)
    load_adapter(load_model(base), tmp_path / "a", trainable=True)
    file = safetensors.read(tmp_path / "a" / STATE)
    tensors = {key: file.load(key) > 0 for key in file.tensors}
    safetensors.write(tmp_path / "a" / STATE, tensors, dict(file.metadata))
    with pytest.raises(FormatError, match="found bool, allowed float32"):
        load_adapter(load_model(base), tmp_path / "a", trainable=True)
