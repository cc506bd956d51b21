"""Prefix tuning by hand; what all methods keep is in test_contract.py, PEFT's in the goldens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.peft.methods import attach
from minift.peft.prefix import Prefix, count

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = torch.arange(14).view(2, 7)


def model(name="llama_gqa"):
    return load_model(GOLDEN / name, dtype=torch.float64)


def test_started_from_tokens_it_is_those_tokens_before_every_text():
    """Their keys are turned by their own places, 0 to n - 1, and the text stands after them."""
    for name in ("llama_gqa", "families/gpt2", "families/gemma2"):
        plain = model(name)
        adapted = attach(model(name), Prefix(3, prefix_init="vocab"), seed=4)
        ids = torch.randint(plain.config.vocab, (1, 3), generator=torch.Generator().manual_seed(4))
        longer = torch.cat((ids.expand(2, -1), TOKENS), dim=1)
        torch.testing.assert_close(adapted(TOKENS), plain(longer)[:, 3:], rtol=0, atol=1e-10)


def test_the_counts_by_hand():
    # three layers of keys and values, two heads of 6
    assert count(model(), Prefix(5)) == 5 * 3 * 2 * 12
    assert count(model(), Prefix(5, 7)) == 5 * 12 + (12 * 7 + 7) + (7 * 72 + 72)


def test_a_second_past_is_refused():
    adapted = attach(model(), Prefix(2))
    with pytest.raises(ConfigError, match="past and a prefix"):
        adapted(TOKENS, past=adapted.adapters.parts["default"].past())


def test_the_context_must_hold_both():
    with pytest.raises(ConfigError, match="exceed the context of 128"):
        attach(model(), Prefix(128))
    adapted = attach(model(), Prefix(125))
    assert adapted(TOKENS[:, :3]).shape == (2, 3, 61)
    with pytest.raises(ConfigError, match="125 virtual tokens and 7 tokens exceed"):
        adapted(TOKENS)


def test_the_context_is_each_packed_texts_own():
    adapted, tokens = attach(model(), Prefix(120)), torch.arange(14)[None]
    y = adapted(tokens, segments=torch.arange(2).repeat_interleave(7)[None])
    for part in (slice(0, 7), slice(7, 14)):
        torch.testing.assert_close(y[:, part], adapted(tokens[:, part]), rtol=0, atol=1e-10)
    with pytest.raises(ConfigError, match="120 virtual tokens and 9 tokens exceed"):
        adapted(tokens, segments=torch.tensor([[0] * 9 + [1] * 5]))


@pytest.mark.parametrize("fields", [
    {"prefix_tokens": 0}, {"prefix_tokens": True}, {"prefix_mlp": -1}, {"prefix_init": "text"},
    {"prefix_init": "vocab", "prefix_mlp": 2},
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        Prefix(**fields)


def test_an_encoder_has_no_cache_to_start_from():
    with pytest.raises(ConfigError, match="allowed random for bert"):
        attach(model("families/bert"), Prefix(2, prefix_init="vocab"))
