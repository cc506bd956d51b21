"""Verifying: what is sound passes, and the first broken layer is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.study.verify import other_trace, probe, save_trace, trace, verify

GOLDEN = Path(__file__).parents[1] / "golden"


def model(name="llama_gqa"):
    return load_model(GOLDEN / name)


@pytest.mark.parametrize("name", ["llama_gqa", "families/bert_body", "families/gpt2_labels"])
def test_a_model_equals_itself(name):
    found = verify(model(name), trace(model(name)))
    assert found.good
    assert found.largest == 0
    layers = len(model(name).blocks)
    assert found.compared == layers + (2 if name.endswith("body") else 3)


def test_the_first_layer_that_differs_is_named():
    other = model()
    with torch.no_grad():
        other.blocks[1].mlp.out.down.weight.mul_(1.5)
    found = verify(other, trace(model()))
    assert found.first is not None
    assert found.first[0] == "block 1"
    assert not found.good


def test_a_number_that_is_not_finite_is_named():
    broken = model()
    with torch.no_grad():
        broken.blocks[2].attn.qkv.k.weight[0, 0] = float("nan")
    found = verify(broken)
    assert found.not_finite[0] == "blocks.2.attn.qkv.k.weight"
    assert "block 2" in found.not_finite
    assert "block 1" not in found.not_finite


def test_a_trace_is_kept_and_compared(tmp_path):
    save_trace(model(), tmp_path / "t.safetensors")
    assert verify(model(), other_trace(tmp_path / "t.safetensors")).good
    assert verify(model(), other_trace(GOLDEN / "llama_gqa")).good
    with pytest.raises(ConfigError, match="embedding is"):
        verify(model("llama_biased"), other_trace(tmp_path / "t.safetensors"))
    with pytest.raises(ConfigError, match="holds no trace"):
        other_trace(GOLDEN / "llama_gqa" / "model.safetensors")


def test_the_probe_fits_the_vocabulary_and_the_context():
    tokens = probe(model())
    assert tokens.shape == (1, 24)
    assert int(tokens.max()) < 61
    assert len(set(tokens[0].tolist())) > 12
