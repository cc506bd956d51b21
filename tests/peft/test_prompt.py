"""Prompt tuning's starts; what all methods keep is in test_contract.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.peft.methods import attach
from minift.peft.prompt import Prompt

BASE = Path(__file__).parents[1] / "golden" / "llama_gqa"
TOKENS = torch.arange(14).view(2, 7)


def model():
    return load_model(BASE, dtype=torch.float64)


def vectors(adapted):
    return adapted.adapters.parts["default"].vectors()


def test_a_text_before_every_text_is_the_start_from_text():
    adapted = attach(model(), Prompt(3, "text", (9, 4, 7)))
    longer = torch.cat((torch.tensor([[9, 4, 7]] * 2), TOKENS), dim=1)
    torch.testing.assert_close(adapted(TOKENS), model()(longer)[:, 3:], rtol=0, atol=1e-12)


def test_a_text_is_repeated_or_cut():
    table = model().embed.weight
    for n, ids in ((5, [9, 4, 9, 4, 9]), (1, [9])):
        assert torch.equal(vectors(attach(model(), Prompt(n, "text", (9, 4)))), table[ids])


def test_words_of_the_vocabulary_and_random_numbers():
    table = model().embed.weight
    for row in vectors(attach(model(), Prompt(4, "vocab"), seed=1)):
        assert (table == row).all(1).any()
    one, same, other = (vectors(attach(model(), Prompt(4, "random"), seed=s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.abs().max() <= 0.5


@pytest.mark.parametrize("fields", [
    {"prompt_tokens": 0}, {"prompt_tokens": 2.0}, {"prompt_init": "zeros"},
    {"prompt_init": "text"}, {"prompt_ids": (1,)},
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(fields):
    with pytest.raises(ConfigError, match="prompt_"):
        Prompt(**fields)


def test_what_the_model_cannot_take_is_refused():
    with pytest.raises(ConfigError, match="ids outside of 0 to 60"):
        attach(model(), Prompt(2, "text", (61,)))
    with pytest.raises(ConfigError, match="exceed the context of 128"):
        attach(model(), Prompt(128))
