"""The fused loss against one cross-entropy over all rows: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minift.kernels.cross_entropy import fused

D, V = 6, 11


def made(N, dtype=torch.float64, biased=False, size=1.0):
    generator = torch.Generator().manual_seed(N)
    head = nn.Linear(D, V, bias=biased).to(dtype).requires_grad_(False)
    for p in head.parameters():
        p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    hidden = size * torch.randn(N, D, generator=generator, dtype=torch.float64)
    return hidden.to(dtype).requires_grad_(), head, torch.randint(V, (N,), generator=generator)


def whole(hidden, head, targets, cap):
    z = head(hidden)
    z = z if cap is None else cap * torch.tanh(z / cap)
    return F.cross_entropy(z, targets, reduction="sum")


@pytest.mark.parametrize("cap", [None, 2.5])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("N", "rows"), [(0, 4), (1, 4), (4, 4), (5, 4), (128, 7), (7, 512)])
def test_value_and_gradient(N, rows, biased, cap, monkeypatch):
    monkeypatch.setattr(fused, "ROWS", rows)
    hidden, head, targets = made(N, biased=biased)
    loss = fused.linear_cross_entropy(hidden, head, targets, cap)
    expected = whole(hidden, head, targets, cap)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    (dh,), (exact,) = (torch.autograd.grad(3 * y, hidden) for y in (loss, expected))
    torch.testing.assert_close(dh, exact, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(fused.linear_cross_entropy(hidden, head, targets, cap), loss)


def test_no_gradient_is_made_where_none_is_needed(monkeypatch):
    seen = []
    one = fused.block
    monkeypatch.setattr(fused, "block", lambda *a: seen.append(a[-1]) or one(*a))
    hidden, head, targets = made(5)
    fused.linear_cross_entropy(hidden.detach(), head, targets)
    fused.linear_cross_entropy(hidden, head, targets)
    assert seen == [False, True]


def test_hopeless_targets_cost_what_they_should():
    """Probabilities that float32 cannot hold: the loss is taken from the logits, not from them."""
    hidden, head, targets = made(9, torch.float32, size=300.0)
    loss = fused.linear_cross_entropy(hidden, head, targets)
    expected = whole(hidden.double(), head.double(), targets, None)
    assert loss > 90 * 9
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert bool(torch.autograd.grad(loss, hidden)[0].isfinite().all())


def test_bf16_adds_up_in_float32():
    hidden, head, targets = made(64, torch.bfloat16)
    loss = fused.linear_cross_entropy(hidden, head, targets)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(head(hidden).float(), targets, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-4)
    (dh,), (twin,) = (torch.autograd.grad(y, hidden) for y in (loss, expected))
    assert dh.dtype == torch.bfloat16
    assert (dh - twin).float().norm() < 0.02 * twin.float().norm()
    (third,) = torch.autograd.grad(fused.linear_cross_entropy(hidden, head, targets) / 3, hidden)
    share = float((third.double() * dh.double()).sum() / dh.double().square().sum())
    assert share == pytest.approx(1 / 3, rel=3e-4)  # 1/3 in bf16 is 1.3e-3 off


def test_by_hand():
    head = nn.Linear(1, 2, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[0.0], [math.log(3)]]))
    h = torch.ones(1, 1, requires_grad=True)
    loss = fused.linear_cross_entropy(h, head, torch.tensor([0]))
    assert loss.item() == pytest.approx(math.log(4))  # probabilities 1/4 and 3/4
    loss.backward()
    assert h.grad.item() == pytest.approx(0.75 * math.log(3))


def test_gradcheck():
    hidden, head, targets = made(5)
    assert torch.autograd.gradcheck(
        lambda h: fused.linear_cross_entropy(h, head, targets, 3.0), (hidden,)
    )
