"""BitFit's folder, which is minift's own form of PEFT's."""

from __future__ import annotations

from pathlib import Path

import torch

from minift.checkpoints.open import load_model
from minift.formats import safetensors, strict_json
from minift.interop.adapter_files import CONFIG, TENSORS, load_adapter, save_adapter
from minift.peft.adapters import trainable
from minift.peft.bitfit import BitFit
from minift.peft.methods import attach

GPT2 = Path(__file__).parents[1] / "golden" / "families" / "gpt2"


def test_the_changes_of_a_fused_matrix_stand_behind_each_other(tmp_path):
    model = attach(load_model(GPT2), BitFit())
    with torch.no_grad():
        for k, parameter in enumerate(trainable(model).values()):
            parameter.fill_(k + 1)
    save_adapter(model, tmp_path / "a")
    data, file = (
        strict_json.read(tmp_path / "a" / CONFIG),
        safetensors.read(tmp_path / "a" / TENSORS),
    )
    assert data["peft_type"] == "BITFIT"
    fused = file.load("base_model.model.transformer.h.0.attn.c_attn.bias_change")
    parts = [p for name, p in trainable(model).items() if "blocks.0.attn.qkv" in name]
    assert torch.equal(fused, torch.cat(parts))
    again = load_adapter(load_model(GPT2), tmp_path / "a")
    tokens = torch.arange(14).view(2, 7)
    assert torch.equal(again(tokens), model(tokens))
