"""Sampling: each rule on five logits worked by hand, and the frequencies of draws."""

from __future__ import annotations

import math

import pytest
import torch

from minift.errors import ConfigError
from minift.generation.sampling import Sampling, adjust, draw

NONE = float("-inf")
LOGITS = [2.0, -1.0, 0.5, 3.0, 0.0]
# Probabilities 0.4, 0.3, 0.15, 0.1, 0.05 in the order 1, 3, 0, 4, 2.
SHARES = [0.15, 0.4, 0.05, 0.3, 0.1]
LOGS = [math.log(p) for p in SHARES]


def adjusted(logits, seen=(), **options):
    marks = torch.tensor([[i in seen for i in range(len(logits))]])
    return adjust(torch.tensor([logits]), marks, Sampling(**options))[0].tolist()


def kept(logits, **options):
    return [i for i, x in enumerate(adjusted(logits, **options)) if x != NONE]


def test_nothing_asked_nothing_changed():
    assert adjusted(LOGITS, seen=(0, 1)) == LOGITS


def test_penalty_divides_positive_and_multiplies_negative_logits_of_seen_tokens():
    out = adjusted(LOGITS, seen=(0, 1, 4), repetition_penalty=2.0)
    assert out == [1.0, -2.0, 0.5, 3.0, 0.0]


def test_penalty_looks_at_its_own_row():
    seen = torch.tensor([[True, False], [False, True]])
    out = adjust(torch.tensor([[4.0, 4.0], [4.0, 4.0]]), seen, Sampling(repetition_penalty=4.0))
    assert out.tolist() == [[1.0, 4.0], [4.0, 1.0]]


def test_temperature_divides():
    assert adjusted(LOGITS, temperature=0.5) == [4.0, -2.0, 1.0, 6.0, 0.0]
    assert adjusted(LOGITS, temperature=2.0) == [1.0, -0.5, 0.25, 1.5, 0.0]


@pytest.mark.parametrize(("k", "left"), [
    (1, [3]), (2, [0, 3]), (3, [0, 2, 3]), (4, [0, 2, 3, 4]), (5, [0, 1, 2, 3, 4]),
    (9, [0, 1, 2, 3, 4]), (0, [0, 1, 2, 3, 4]),
])  # fmt: skip
def test_top_k_keeps_the_best(k, left):
    assert kept(LOGITS, top_k=k) == left


@pytest.mark.parametrize(("p", "left"), [
    (0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [0, 1, 3]),
    (0.84, [0, 1, 3]), (0.86, [0, 1, 3, 4]), (0.96, [0, 1, 2, 3, 4]), (1.0, [0, 1, 2, 3, 4]),
])  # fmt: skip
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, left):
    assert kept(LOGS, top_p=p) == left
    out = adjusted(LOGS, top_p=p)
    assert [out[i] for i in left] == pytest.approx([LOGS[i] for i in left])


def test_rules_follow_each_other():
    # The penalty makes token 3 the worst of three, so top-k 2 leaves 0 and 2.
    out = adjusted(LOGITS, seen=(3,), repetition_penalty=10.0, temperature=0.5, top_k=2)
    assert out == [4.0, NONE, 1.0, NONE, NONE]
    # The three best are shared anew: 0.4, 0.3, 0.15 of 0.85 are 0.47, 0.35, 0.18.
    assert kept(LOGS, top_k=3, top_p=0.8) == [1, 3]
    assert kept(LOGS, top_p=0.8) == [0, 1, 3]
    # At temperature 0.5 shares are squared: 0.16, 0.09, ... of 0.285 are 0.56, 0.32, ...
    assert kept(LOGS, temperature=0.5, top_p=0.55) == [1]
    assert kept(LOGS, temperature=1.0, top_p=0.55) == [1, 3]


@pytest.mark.parametrize(("options", "expected"), [
    ({}, SHARES),
    ({"temperature": 0.5}, [0.0225, 0.16, 0.0025, 0.09, 0.01]),
    ({"top_k": 2}, [0, 4, 0, 3, 0]),
    ({"top_p": 0.8}, [0.15, 0.4, 0, 0.3, 0]),
])  # fmt: skip
def test_draws_have_the_frequencies_of_the_shares(options, expected):
    n = 20_000
    config = Sampling(**{"temperature": 1.0} | options)
    logits = adjust(torch.tensor([LOGS]), torch.zeros(1, 5, dtype=torch.bool), config)
    tokens = draw(logits.expand(n, -1), config, torch.Generator().manual_seed(3))
    counts = torch.bincount(tokens, minlength=5).tolist()
    for count, share in zip(counts, expected, strict=True):
        p = share / sum(expected)
        assert abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p))  # none where p is 0


def test_temperature_zero_is_the_best_whatever_the_generator():
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        assert draw(torch.tensor([LOGITS, LOGS]), Sampling(), generator).tolist() == [3, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [[float("nan"), 1.0], [NONE, NONE], [float("inf"), 1.0]])
def test_logits_that_are_not_finite_are_refused(bad, temperature):
    logits = torch.tensor([[1.0, 2.0], bad])
    with pytest.raises(ConfigError, match="not finite"):
        draw(logits, Sampling(temperature=temperature), torch.Generator())


@pytest.mark.parametrize(("options", "text"), [
    ({"temperature": -0.1}, "temperature: found -0.1"),
    ({"temperature": float("nan")}, "temperature: found nan"),
    ({"temperature": float("inf")}, "temperature: found inf"),
    ({"top_k": -1}, "top_k: found -1"),
    ({"top_p": 0.0}, "top_p: found 0.0"),
    ({"top_p": 1.01}, "top_p: found 1.01"),
    ({"top_p": float("nan")}, "top_p: found nan"),
    ({"repetition_penalty": 0.0}, "repetition_penalty: found 0.0"),
])  # fmt: skip
def test_refusals(options, text):
    with pytest.raises(ConfigError, match=text):
        Sampling(**options)


def test_every_problem_is_told_at_once():
    with pytest.raises(ConfigError, match=r"top_k: .*; top_p: "):
        Sampling(top_k=-1, top_p=0)
