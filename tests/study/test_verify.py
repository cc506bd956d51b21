"""Verifying: what is sound passes, and the first broken layer is named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.formats import safetensors
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


def test_a_trace_of_a_deeper_model_is_another(tmp_path):
    there = trace(model()) | {"block 9": torch.zeros(24, 16)}
    with pytest.raises(ConfigError, match="verify: block 9 is there, and this model has no such"):
        verify(model(), there)


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""

    def attempt(folder: Path, tensors, metadata) -> None:
        safetensors.write(folder / "t.safetensors", tensors, metadata)
        verify(model(), other_trace(folder / "t.safetensors"))

    said, sound = {"trace_of": "a model"}, trace(model())
    kinds = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
             torch.float16, torch.bfloat16, torch.float64)  # fmt: skip
    cases: dict[str, tuple[dict[str, torch.Tensor], dict[str, str] | None, str]] = {
        f"a layer in {kind}": (sound | {"block 1": sound["block 1"].to(kind)}, said, "bad-type")
        for kind in kinds
    }
    cases |= {
        "a number": (sound | {"head": torch.tensor(1.0)}, said, "bad-type"),
        "three dimensions": (sound | {"head": torch.zeros(1, 24, 3)}, said, "bad-type"),
        "no positions": (sound | {"block 0": torch.zeros(0, 16)}, said, "bad-type"),
        "no width": (sound | {"block 0": torch.zeros(24, 0)}, said, "bad-type"),
        "other positions": (sound | {"block 0": torch.zeros(23, 16)}, said, "config"),
        "a layer too few": ({n: x for n, x in sound.items() if n != "head"}, said, "config"),
        "a layer too many": (sound | {"block 7\u202e": torch.zeros(24, 16)}, said, "config"),
        "no layers": ({}, said, "config"),
        "a model's weights": (sound, None, "config"),
        "of another kind": (sound, {"format": "pt"}, "config"),
    }
    return {
        name: (partial(attempt, tensors=tensors, metadata=metadata), code)
        for name, (tensors, metadata, code) in cases.items()
    }
