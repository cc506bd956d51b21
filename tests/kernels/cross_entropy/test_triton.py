"""Triton's loss, interpreted, against torch's cross-entropy over all rows: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

D, V = 6, 11


@pytest.fixture
def form(interpreted):
    return interpreted("cross_entropy.triton")


def made(N, dtype=torch.float64, biased=False, size=1.0, vocab=V):
    generator = torch.Generator().manual_seed(N)
    head = nn.Linear(D, vocab, bias=biased).to(dtype).requires_grad_(False)
    for p in head.parameters():
        p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    hidden = size * torch.randn(N, D, generator=generator, dtype=torch.float64)
    return hidden.to(dtype).requires_grad_(), head, torch.randint(vocab, (N,), generator=generator)


def whole(hidden, head, targets, cap=None):
    z = head(hidden)
    z = z if cap is None else cap * torch.tanh(z / cap)
    return F.cross_entropy(z, targets, reduction="sum")


@pytest.mark.parametrize("cap", [None, 2.5])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("N", "rows", "columns"), [
    (0, 4, 16), (1, 4, 16), (5, 4, 4), (128, 100, 16), (7, 512, 1)
])  # fmt: skip
def test_value_and_gradient(form, N, rows, columns, biased, cap, monkeypatch):
    monkeypatch.setattr(form, "ROWS", rows)
    monkeypatch.setattr(form, "COLUMNS", columns)
    hidden, head, targets = made(N, biased=biased)
    loss, expected = form.linear_cross_entropy(hidden, head, targets, cap), None
    expected = whole(hidden, head, targets, cap)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-12)
    (dh,), (exact,) = (torch.autograd.grad(3 * y, hidden) for y in (loss, expected))
    torch.testing.assert_close(dh, exact, rtol=0, atol=1e-11)
    with torch.no_grad():
        assert torch.equal(form.linear_cross_entropy(hidden, head, targets, cap), loss)


def test_without_a_gradient_the_logits_stay(form):
    z = torch.randn(3, V, dtype=torch.float64)
    kept, targets = z.clone(), torch.tensor([0, 10, 4])
    losses = form.turn(z, targets, None, False)
    assert torch.equal(z, kept)
    torch.testing.assert_close(losses, F.cross_entropy(z, targets, reduction="none"))
    form.turn(z, targets, None, True)
    expected = kept.softmax(1) - F.one_hot(targets, V)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-14)


def test_hopeless_targets_cost_what_they_should(form):
    """Probabilities that float32 cannot hold: the loss is taken from the logits, not from them."""
    hidden, head, targets = made(9, torch.float32, size=300.0)
    exact = whole(hidden.double(), head.double(), targets)
    head.float()
    loss = form.linear_cross_entropy(hidden, head, targets)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


def test_float32_is_within_its_rounding(form):
    hidden, head, targets = made(40, torch.float32, vocab=300)
    loss, expected = form.linear_cross_entropy(hidden, head, targets), None
    (dh,) = torch.autograd.grad(loss, hidden)
    wide = hidden.detach().double().requires_grad_()
    expected = whole(wide, head.double(), targets)
    (exact,) = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert (dh.double() - exact).norm() < 1e-6 * exact.norm()


def test_bf16_logits_are_summed_in_float32(form):
    """Logits rounded to 8 bits on both sides, and their gradients."""
    hidden, head, targets = made(64, torch.bfloat16, vocab=300)
    loss = form.linear_cross_entropy(hidden, head, targets)
    assert loss.dtype == torch.float32
    logits = F.linear(hidden, head.weight).double()
    expected = F.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    (dh,), (exact,) = (torch.autograd.grad(y, hidden) for y in (loss, expected))
    assert dh.dtype == torch.bfloat16
    assert (dh.double() - exact.double()).norm() < 0.01 * exact.double().norm()


def test_by_hand(form):
    head = nn.Linear(1, 2, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[0.0], [math.log(3)]]))
    h = torch.ones(1, 1, requires_grad=True)
    loss = form.linear_cross_entropy(h, head, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(4))  # probabilities 1/4 and 3/4
    loss.backward()
    assert h.grad.item() == pytest.approx(0.75 * math.log(3))


def test_weights_are_what_each_row_counts(form, monkeypatch):
    """Against torch's loss of single rows; a row of weight 0 leaves no trace, however wrong."""
    monkeypatch.setattr(form, "ROWS", 4)
    hidden, head, targets = made(9)
    with torch.no_grad():
        hidden[[2, 7]] *= 1e4
    weights = torch.tensor([0.5, 2, 0, 1, 0.1, 3, 1e-3, 0, 1], dtype=torch.float64)
    loss = form.linear_cross_entropy(hidden, head, targets, 2.5, weights)
    z = 2.5 * torch.tanh(head(hidden) / 2.5)
    expected = F.cross_entropy(z, targets, reduction="none") @ weights
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    (dh,), (exact,) = (torch.autograd.grad(3 * y, hidden) for y in (loss, expected))
    torch.testing.assert_close(dh, exact, rtol=0, atol=1e-12)
    assert not dh[[2, 7]].any()
    kept = weights != 0
    less = form.linear_cross_entropy(hidden[kept], head, targets[kept], 2.5, weights[kept])
    torch.testing.assert_close(loss, less, rtol=1e-14, atol=0)
    with torch.no_grad():
        assert torch.equal(form.linear_cross_entropy(hidden, head, targets, 2.5, weights), loss)


def test_gradcheck(form):
    hidden, head, targets = made(5)
    assert torch.autograd.gradcheck(
        lambda h: form.linear_cross_entropy(h, head, targets, 3.0), (hidden,), fast_mode=True
    )
