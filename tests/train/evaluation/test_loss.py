"""The held-out loss against log_softmax by hand."""

from __future__ import annotations

import pytest
import torch

from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.train.evaluation.loss import held_out_loss
from minift.train.objectives.batch import token_batches
from minift.train.objectives.sft import SFT


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


class Fixed:
    """Held-out rows, whatever the tokenizer; fails on request."""

    loss_sum = SFT.loss_sum

    def __init__(self, rows, error=None):
        self.rows, self.error = rows, error

    def held_out_batches(self, max_tokens):
        yield from token_batches(self.rows, max_tokens) if self.rows else ()
        if self.error:
            raise self.error


@pytest.mark.parametrize("most", [1, 8, 100])
def test_held_out_loss_is_a_mean_over_targets(tiny, most):
    rows = [([5, 6, 7, 8, 9], [0, 0, 0, 1, 1]), ([4, 3], [0, 1]), ([1, 2, 3, 4], [0, 1, 1, 1])]
    expected = -sum(
        by_hand(tiny, ids[:t], [ids[t]]) for ids, mask in rows for t in range(len(ids)) if mask[t]
    ) / 6  # fmt: skip
    assert held_out_loss(tiny, Fixed(rows), most) == pytest.approx(expected, rel=1e-12)
    assert held_out_loss(tiny, Fixed([]), most) is None


def test_the_training_flag_comes_back(tiny):
    rows = [([4, 3], [0, 1])]
    tiny.train()
    try:
        held_out_loss(tiny, Fixed(rows), 10)
        assert tiny.training
        with pytest.raises(OSError, match="gone"):
            held_out_loss(tiny, Fixed(rows, OSError("gone")), 10)
        assert tiny.training
    finally:
        tiny.eval()
