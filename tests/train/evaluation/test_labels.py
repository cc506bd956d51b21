"""Evaluation: intervals from the literature, label scores against log_softmax by hand."""

from __future__ import annotations

import pytest
import torch

from minift.errors import ConfigError
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.train.evaluation import labels as module
from minift.train.evaluation.labels import Accuracy, label_logprobs, padded, wilson

PROMPTS = [[5, 6], [1], [9, 8, 7, 6, 5, 4], [2, 3, 4]]


@pytest.fixture(scope="module")
def tiny():
    generator = torch.Generator().manual_seed(9)
    model = Transformer(ModelConfig("llama", 23, 16, 2, 4, 2, 4, 12, 64)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.5)
    return model.eval()


@torch.no_grad()
def by_hand(model, prompt, label):
    """log p(label | prompt), a token at a time, nothing padded."""
    ids, total = list(prompt), 0.0
    for token in label:
        total += model(torch.tensor([ids]))[0, -1].log_softmax(-1)[token].item()
        ids.append(token)
    return total


# Newcombe 1998, Statistics in Medicine 17, table I, method 3; 10/10 and 0/10 are widely tabled.
@pytest.mark.parametrize(("right", "total", "low", "high"), [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718), (10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775),
])  # fmt: skip
def test_intervals_equal_published_ones(right, total, low, high):
    assert wilson(right, total) == pytest.approx((low, high), abs=6e-5)


def test_intervals_are_shares_that_hold_the_share():
    assert wilson(0, 0) == (0.0, 1.0)
    for total in range(1, 120):
        for right in range(total + 1):
            low, high = wilson(right, total)
            assert 0 <= low <= right / total + 1e-12
            assert right / total - 1e-12 <= high <= 1
            assert wilson(total - right, total) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_accuracy_reads_well():
    assert str(Accuracy(10, 10)) == "100.0 %  (72.2 to 100.0)"
    assert str(Accuracy(0, 10)) == "0.0 %  (0.0 to 27.8)"
    assert Accuracy(0, 0).share == 0


@pytest.mark.parametrize("labels", [
    [[3], [4], [20]], [[3, 4], [5, 6]], [[3], [4, 5, 6], [7, 7]], [[11]],
])  # fmt: skip
def test_label_scores_by_hand(tiny, labels):
    heard = []
    found = label_logprobs(tiny, PROMPTS, labels, heard.append)
    expected = torch.tensor([[by_hand(tiny, p, label) for label in labels] for p in PROMPTS])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    passes = 1 if all(len(label) == 1 for label in labels) else len(labels)
    assert sum(heard) == passes * len(PROMPTS)


def test_the_short_way_equals_the_long_one(tiny):
    labels = [[3], [4], [20]]
    short = label_logprobs(tiny, PROMPTS, labels)
    # A label of two tokens sends all of them the long way.
    long = label_logprobs(tiny, PROMPTS, [*labels, [1, 2]])[:, :3]
    torch.testing.assert_close(short, long, rtol=0, atol=1e-6)


def test_scores_of_all_tokens_are_a_distribution(tiny):
    scores = label_logprobs(tiny, PROMPTS, [[i] for i in range(23)])
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(4))


@pytest.mark.parametrize("labels", [[[3]], [[3, 4]]])
def test_refusals(tiny, labels):
    for wrong in ([], [[]], [[1], []]):
        with pytest.raises(ConfigError, match="labels: each needs"):
            label_logprobs(tiny, PROMPTS, wrong)
    with pytest.raises(ConfigError, match="prompts: each needs"):
        label_logprobs(tiny, [[1], []], labels)


@pytest.mark.parametrize(("rows", "tokens"), [(64, 2048), (3, 2048), (64, 12), (1, 1)])
def test_padded_covers_each_row_once(monkeypatch, rows, tokens):
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "TOKENS", tokens)
    given = [[k + 1] * n for k, n in enumerate([4, 1, 9, 2, 2, 6, 13, 3])]
    batches = padded(given)
    assert sorted(i for indices, _ in batches for i in indices) == list(range(8))
    for indices, block in batches:
        assert len(indices) <= rows
        assert block.numel() <= tokens or len(indices) == 1
        for i, row in zip(indices, block.tolist(), strict=True):
            assert row == given[i] + [0] * (len(row) - len(given[i]))
    assert padded([]) == []


def test_the_training_flag_comes_back(tiny):
    tiny.train()
    try:
        label_logprobs(tiny, PROMPTS, [[1]])
        assert tiny.training
        with pytest.raises(IndexError):
            label_logprobs(tiny, [[99]], [[1]])
        assert tiny.training
    finally:
        tiny.eval()
