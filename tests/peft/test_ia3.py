"""(IA)³ by hand; what all methods keep is in test_contract.py, PEFT's numbers in the goldens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.peft.ia3 import IA3, count
from minift.peft.methods import attach
from minift.peft.slots import changes

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = torch.arange(14).view(2, 7)


def model(name="llama_biased"):
    return load_model(GOLDEN / name, dtype=torch.float64)


def test_scaling_a_linear_is_scaling_its_rows_and_bias_or_its_columns():
    adapted, plain = attach(model(), IA3(("v",), ("down",))), model()
    with torch.no_grad():
        for path, _, change in changes(adapted):
            change.l.copy_(torch.linspace(0.5, 2, change.l.numel()))
            linear = plain.get_submodule(path)
            if change.side == "out":
                linear.weight.mul_(change.l[:, None])
                linear.bias.mul_(change.l)
            else:
                linear.weight.mul_(change.l)
    torch.testing.assert_close(adapted(TOKENS), plain(TOKENS), rtol=0, atol=1e-12)


def test_the_count_by_hand():
    # k and v 12 rows each, down 40 columns; three layers
    assert count(model("llama_gqa"), IA3()) == 3 * (12 + 12 + 40)


def test_both_sides_of_one_linear_are_refused():
    with pytest.raises(ConfigError, match="among outputs too"):
        attach(model(), IA3(("down",), ("mlp",)))
    with pytest.raises(ConfigError, match="outputs, inputs: found none"):
        IA3((), ())
