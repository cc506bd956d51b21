"""P-tuning's networks; what all methods keep is in test_contract.py, PEFT's in the goldens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.peft.methods import attach
from minift.peft.ptuning import PTuning, count

BASE = Path(__file__).parents[1] / "golden" / "llama_gqa"


def model():
    return load_model(BASE)


def test_the_same_seed_gives_the_same_network_whatever_torch_drew_before():
    for kind in ("mlp", "lstm"):
        config, found = PTuning(3, kind, 4), []
        for seed in (5, 5, 6):
            torch.rand(3)
            found.append(attach(model(), config, seed=seed).adapters.parts["default"].vectors())
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])


def test_the_counts_by_hand():
    # three vectors of 24; 24 -> 5 -> 5 -> 24 with biases
    assert count(model(), PTuning(3, "mlp", 5)) == 72 + (24 * 5 + 5) + (25 + 5) + (5 * 24 + 24)
    # two directions of four gates of width 4, inputs 24 then 8; 8 -> 8 -> 24
    lstm = 2 * (16 * 24 + 16 * 4 + 32) + 2 * (16 * 8 + 16 * 4 + 32)
    assert count(model(), PTuning(3, "lstm", 4)) == 72 + lstm + (64 + 8) + (8 * 24 + 24)


def test_finished_it_is_a_prompt():
    part = attach(model(), PTuning(3, "lstm", 4)).adapters.parts["default"]
    before = part.vectors().detach()
    part.finish(before)
    assert torch.equal(part.vectors(), before)
    assert [name for name, _ in part.named_parameters()] == ["prompt"]
    assert not part.derived


@pytest.mark.parametrize("fields", [
    {"ptuning_tokens": 0}, {"encoder": "gru"}, {"encoder_hidden": 0}, {"encoder_layers": 1.5},
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        PTuning(**fields)
