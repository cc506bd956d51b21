"""The fused loss against one cross-entropy over all rows, and every row's own log-probability."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minift.kernels.cross_entropy import fused, reference

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
    monkeypatch.setattr(fused, "NEAR", 3 * V)  # pieces of three rows
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


def test_bf16_adds_up_in_float32(monkeypatch):
    monkeypatch.setattr(fused, "NEAR", 7 * V)
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


def test_weights_are_what_each_row_counts(monkeypatch):
    """Against torch's loss of single rows; a row of weight 0 leaves no trace, however wrong."""
    monkeypatch.setattr(fused, "ROWS", 4)
    hidden, head, targets = made(9)
    with torch.no_grad():
        hidden[[2, 7]] *= 1e4
    weights = torch.tensor([0.5, 2, 0, 1, 0.1, 3, 1e-3, 0, 1], dtype=torch.float64)
    loss = fused.linear_cross_entropy(hidden, head, targets, 2.5, weights)
    z = 2.5 * torch.tanh(head(hidden) / 2.5)
    expected = F.cross_entropy(z, targets, reduction="none") @ weights
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-13)
    (dh,), (exact,) = (torch.autograd.grad(3 * y, hidden) for y in (loss, expected))
    torch.testing.assert_close(dh, exact, rtol=0, atol=1e-12)
    assert not dh[[2, 7]].any()
    kept = weights != 0
    less = fused.linear_cross_entropy(hidden[kept], head, targets[kept], 2.5, weights[kept])
    torch.testing.assert_close(loss, less, rtol=1e-14, atol=0)
    with torch.no_grad():
        assert torch.equal(fused.linear_cross_entropy(hidden, head, targets, 2.5, weights), loss)


def test_gradcheck():
    hidden, head, targets = made(5)
    assert torch.autograd.gradcheck(
        lambda h: fused.linear_cross_entropy(h, head, targets, 3.0), (hidden,)
    )


# ---- log-probabilities and entropies -------------------------------------------------------------


def each(hidden, head, targets, cap, temperature):
    """By torch alone, all rows at once."""
    z = head(hidden)
    z = (z if cap is None else cap * torch.tanh(z / cap)) / temperature
    one = torch.distributions.Categorical(logits=z)
    return z.log_softmax(-1).gather(1, targets[:, None])[:, 0], one.entropy()


def weights(N, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(N, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("cap", [None, 2.5])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("N", "rows"), [(1, 4), (4, 4), (5, 4), (128, 7), (7, 512)])
def test_rows_and_gradients(N, rows, biased, cap, temperature, monkeypatch):
    monkeypatch.setattr(fused, "ROWS", rows)
    monkeypatch.setattr(fused, "NEAR", 3 * V)
    hidden, head, targets = made(N, biased=biased)
    found = fused.token_logprobs(hidden, head, targets, cap, temperature)
    expected = each(hidden, head, targets, cap, temperature)
    for mine, exact in zip(found, expected, strict=True):
        assert mine.shape == (N,)
        torch.testing.assert_close(mine, exact, rtol=0, atol=1e-12)
    a, e = weights(N, 3)
    for one, other in ((a, e), (a, 0 * e), (0 * a, e)):
        dh, exact = (
            torch.autograd.grad(one @ y + other @ H, hidden, retain_graph=True)[0]
            for y, H in (found, expected)
        )
        torch.testing.assert_close(dh, exact, rtol=0, atol=1e-12)
    for k in (0, 1):  # one of the two alone
        dh, exact = (
            torch.autograd.grad(a @ form(hidden, head, targets, cap, temperature)[k], hidden)[0]
            for form in (fused.token_logprobs, each)
        )
        torch.testing.assert_close(dh, exact, rtol=0, atol=1e-12)
    with torch.no_grad():  # the first ratio of PPO is exactly 1
        again = fused.token_logprobs(hidden, head, targets, cap, temperature)
    assert torch.equal(again[0], found[0])
    assert torch.equal(again[1], found[1])


def test_no_rows():
    hidden, head, targets = made(0)
    found = fused.token_logprobs(hidden, head, targets)
    assert [y.shape for y in found] == [(0,), (0,)]
    assert torch.autograd.grad(sum(y.sum() for y in found), hidden)[0].shape == (0, D)


def test_rows_that_are_strided():
    hidden, head, targets = made(12)
    wide = torch.stack((hidden, hidden), dim=-1)[..., 0]
    assert not wide.is_contiguous()
    found = fused.token_logprobs(wide, head, targets)
    a, e = weights(12, 1)
    expected = each(hidden, head, targets, None, 1.0)
    (dh,), (exact,) = (
        torch.autograd.grad(a @ y + (e * H).sum(), hidden) for y, H in (found, expected)
    )
    torch.testing.assert_close(dh, exact, rtol=0, atol=1e-12)


def test_a_gradient_that_is_one_number_for_all_rows():
    """`sum` hands the backward pass an expanded tensor, without strides."""
    hidden, head, targets = made(9)
    found, expected = (
        fused.token_logprobs(hidden, head, targets),
        each(hidden, head, targets, None, 1),
    )
    (dh,), (exact,) = (torch.autograd.grad(y.sum() + H.sum(), hidden) for y, H in (found, expected))
    torch.testing.assert_close(dh, exact, rtol=0, atol=1e-12)


def test_large_logits_keep_their_digits():
    """Same logits, float32 next to float64: nothing cancels, whatever their size.

    A difference of two logits is rounded once (6e-8 of it), a sum of 11 terms a few times.
    """
    hidden, head, targets = made(64, torch.float32, size=300.0)
    z = head(hidden).detach()
    exact = torch.distributions.Categorical(logits=z.double())
    logp, entropy = fused.token_logprobs(hidden, head, targets)
    torch.testing.assert_close(logp.double(), exact.log_prob(targets), rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(entropy.double(), exact.entropy(), rtol=1e-5, atol=1e-6)
    dh = torch.autograd.grad(logp.sum() + entropy.sum(), hidden)[0]
    assert bool(dh.isfinite().all())


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_narrow_rows_give_float32(dtype, most):
    """bf16 rounds dz and dh, 2^-9 each; the values come from the same rounded logits."""
    hidden, head, targets = made(64, dtype)
    found = fused.token_logprobs(hidden, head, targets, 5.0, 0.9)
    twin = reference.token_logprobs(
        hidden, lambda h: 5 * torch.tanh(head(h).float() / 5), targets, 0.9
    )
    for mine, expected in zip(found, twin, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, rtol=2e-6, atol=2e-6)
    a, e = weights(64, 5, torch.float32)
    (dh,), (exact,) = (torch.autograd.grad(a @ y + e @ H, hidden) for y, H in (found, twin))
    assert dh.dtype == dtype
    assert (dh - exact).float().norm() < most * exact.float().norm()


@pytest.mark.parametrize(("temperature", "logps", "entropy"), [
    (1.0, [-0.40760596, -1.40760596, -2.40760596], 0.832396),
    (0.7, [-0.26011840, -1.68868983, -3.11726126], 0.650573),
])  # fmt: skip
def test_logits_2_1_0_by_hand(temperature, logps, entropy):
    head = nn.Linear(1, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[2.0], [1.0], [0.0]]))
    h = torch.ones(3, 1)
    found = fused.token_logprobs(h, head, torch.arange(3), temperature=temperature)
    assert found[0].tolist() == pytest.approx(logps, abs=1e-6)
    assert found[1].tolist() == pytest.approx([entropy] * 3, abs=1e-6)
    head.weight.zero_()
    assert fused.token_logprobs(h, head, torch.arange(3))[1].tolist() == pytest.approx(
        [math.log(3)] * 3
    )


@pytest.mark.parametrize("cap", [None, 3.0])
def test_gradcheck_of_rows(cap):
    hidden, head, targets = made(5, biased=True)
    assert torch.autograd.gradcheck(
        lambda h: fused.token_logprobs(h, head, targets, cap, 0.8), (hidden,)
    )
