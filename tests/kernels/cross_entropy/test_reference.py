"""The blocked loss against one cross-entropy over all rows at once."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minift.kernels.cross_entropy.reference import linear_cross_entropy, token_logprobs

D, V = 6, 11


def made(N, dtype=torch.float64):
    generator = torch.Generator().manual_seed(N)
    hidden = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype)
    head = nn.Linear(D, V, bias=False).to(dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, D, generator=generator, dtype=torch.float64))
    targets = torch.randint(V, (N,), generator=generator)
    return hidden.requires_grad_(), head, targets


def whole(hidden, head, targets):
    return F.cross_entropy(F.linear(hidden, head.weight), targets, reduction="sum")


def gradients(loss, hidden, head):
    return torch.autograd.grad(loss, (hidden, head.weight))


@pytest.mark.parametrize(("N", "rows"), [
    (0, 512), (1, 512), (512, 512), (513, 512), (1030, 512), (7, 1), (7, 3), (6, 3),
])  # fmt: skip
def test_value_and_gradients_equal_one_cross_entropy(N, rows):
    hidden, head, targets = made(N)
    loss = linear_cross_entropy(hidden, head, targets, rows)
    expected = whole(hidden, head, targets)
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    found = gradients(loss, hidden, head)
    for a, b in zip(found, gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        assert linear_cross_entropy(hidden, head, targets, rows) == loss


def test_no_rows_no_loss():
    hidden, head, targets = made(0)
    loss = linear_cross_entropy(hidden, head, targets)
    assert loss == 0
    assert gradients(loss, hidden, head)[1].abs().max() == 0


def test_weights_by_hand_and_by_repetition():
    """A row of weight 2 is that row twice, one of weight 0 is none: in blocks and in one piece."""
    hidden, head, targets = made(7)
    weights = torch.tensor([1.0, 2, 0, 1, 0, 2, 1], dtype=torch.float64)
    again = torch.repeat_interleave(torch.arange(7), weights.long())
    expected = whole(hidden[again], head, targets[again])
    for rows in (3, 512):
        loss = linear_cross_entropy(hidden, head, targets, rows, weights)
        torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
        found = gradients(loss, hidden, head)
        for a, b in zip(found, gradients(whole(hidden[again], head, targets[again]), hidden, head),
                        strict=True):  # fmt: skip
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
        assert not found[0][[2, 4]].any()


def test_a_head_that_knows_nothing_costs_the_log_of_the_vocabulary():
    hidden, head, targets = made(600)
    nn.init.zeros_(head.weight)
    loss = linear_cross_entropy(hidden, head, targets)
    assert float(loss.detach()) == pytest.approx(600 * math.log(V), rel=1e-13)


def test_a_head_of_any_kind_is_called_as_a_module():
    hidden, head, targets = made(20)
    twice = nn.Sequential(head, nn.Linear(V, V, bias=False).double())
    loss = linear_cross_entropy(hidden, twice, targets, 6)
    expected = F.cross_entropy(twice(hidden), targets, reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("N", "calls"), [(4, [4]), (5, [4, 1, 1, 4]), (10, [4, 4, 2, 2, 4, 4])])
def test_above_one_block_each_is_computed_again_in_the_backward_pass(N, calls):
    hidden, head, targets = made(N)
    seen = []
    head.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    linear_cross_entropy(hidden, head, targets, 4).backward()
    assert seen == calls


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_summed_in_float32(dtype):
    hidden, head, targets = made(700, dtype)
    loss = linear_cross_entropy(hidden, head, targets)
    assert loss.dtype == torch.float32
    logits = F.linear(hidden, head.weight).double()
    exact = F.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    loss.backward()
    assert hidden.grad.dtype == head.weight.grad.dtype == dtype


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize(("N", "rows"), [(0, 512), (1, 512), (7, 1), (7, 3), (6, 3), (128, 50)])
def test_rows_equal_log_softmax_and_categorical(N, rows, temperature):
    hidden, head, targets = made(N)
    logp, entropy = token_logprobs(hidden, head, targets, temperature, rows)
    logits = F.linear(hidden, head.weight) / temperature
    one = torch.distributions.Categorical(logits=logits, validate_args=False)  # N = 0, too
    torch.testing.assert_close(logp, one.log_prob(targets), rtol=0, atol=1e-12)
    torch.testing.assert_close(entropy, one.entropy(), rtol=0, atol=1e-12)
    a, e = torch.sin(torch.arange(N)).double(), torch.cos(torch.arange(N)).double()
    found = gradients((a * logp).sum() + (e * entropy).sum(), hidden, head)
    exact = gradients((a * one.log_prob(targets)).sum() + (e * one.entropy()).sum(), hidden, head)
    for mine, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-11)
    with torch.no_grad():
        again = token_logprobs(hidden, head, targets, temperature, rows)
    assert torch.equal(again[0], logp)
    assert torch.equal(again[1], entropy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_rows_are_computed_in_float32(dtype):
    hidden, head, targets = made(30, dtype)
    logp, entropy = token_logprobs(hidden, head, targets)
    exact = torch.distributions.Categorical(logits=head(hidden).double())
    torch.testing.assert_close(logp.double(), exact.log_prob(targets), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropy.double(), exact.entropy(), rtol=1e-5, atol=1e-6)
    assert logp.dtype == entropy.dtype == torch.float32
