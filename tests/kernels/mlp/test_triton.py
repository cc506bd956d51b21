"""Triton's block, interpreted, is the readable one: values and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.activations import ACTIVATIONS
from minift.kernels.lora.reference import Adapted
from minift.kernels.mlp import reference

D, F = 6, 13


@pytest.fixture
def form(interpreted, monkeypatch):
    found = interpreted("mlp.triton")
    monkeypatch.setattr(found, "BLOCK", 64)
    return found


def made(B, T, gated, rank, dtype=torch.float64, biased=True, drop=0.0):
    """x, the block's linears."""
    generator = torch.Generator().manual_seed(T + rank)
    wide = torch.promote_types(dtype, torch.float32)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def adapted(inputs, outputs):
        linear = nn.Linear(inputs, outputs, bias=biased).to(dtype).requires_grad_(False)
        with torch.no_grad():
            for p in linear.parameters():
                p.copy_(drawn(*p.shape) / 2)
        if not rank:
            return Adapted(linear)
        A, B = drawn(rank, inputs) / 2, drawn(outputs, rank) / 2
        return Adapted(linear, A.to(wide).requires_grad_(), B.to(wide).requires_grad_(), 0.7, drop)

    hidden = [adapted(D, F) for _ in range(2 if gated else 1)]
    return drawn(B, T, D).to(dtype).requires_grad_(), hidden, adapted(F, D)


def wanted(x, hidden, out):
    found = [t for m in (*hidden, out) for t in (m.A, m.B) if t is not None and t.requires_grad]
    return found + ([x] if x.requires_grad else [])


def results(form, x, hidden, out, act):
    y = form.mlp(x, hidden, out, ACTIVATIONS[act])
    g = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, wanted(x, hidden, out), g)]


def alike(ours, twins):
    for a, b in zip(ours, twins, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("B", "T", "rank"), [(1, 1, 1), (3, 7, 8), (1, 5, 0)])
def test_values_and_all_gradients(form, B, T, rank, gated, act):
    parts = made(B, T, gated, rank)
    alike(*(results(f, *parts, act) for f in (form, reference)))


@pytest.mark.parametrize("gated", [True, False])
def test_many_rows(form, gated):
    parts = made(1, 128, gated, 6)
    alike(*(results(f, *parts, "silu") for f in (form, reference)))


def test_nothing_below_needs_a_gradient_or_nothing_learns(form):
    x, hidden, out = made(2, 5, True, 3, biased=False)
    x.requires_grad_(False)
    alike(*(results(f, x, hidden, out, "silu") for f in (form, reference)))
    x.requires_grad_(True)
    for member in (*hidden, out):
        member.A.requires_grad_(False), member.B.requires_grad_(False)
    alike(*(results(f, x, hidden, out, "silu") for f in (form, reference)))


def test_only_the_last_linear_is_changed_or_only_the_first(form):
    x, hidden, out = made(2, 5, True, 3)
    plain = [Adapted(m.linear) for m in (*hidden, out)]
    for first, last in ((plain[:2], out), (hidden, plain[2])):
        alike(*(results(f, x, first, last, "silu") for f in (form, reference)))


def test_no_rows(form):
    x, hidden, out = made(0, 5, True, 3)
    alike(*(results(f, x, hidden, out, "silu") for f in (form, reference)))


# bf16: e, p, h, de, dp, t and u are rounded, each by 2^-9 at most.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_less_precision_is_within_its_rounding(form, dtype, limit):
    x, hidden, out = made(3, 64, True, 8, dtype)
    xd, wide, last = made(3, 64, True, 8)
    for mine, twin in zip((*wide, last), (*hidden, out), strict=True):
        mine.linear.load_state_dict(twin.linear.state_dict())
        mine.A.data.copy_(twin.A.data), mine.B.data.copy_(twin.B.data)
    xd.data.copy_(x.data)
    exact = results(reference, xd, wide, last, "silu")
    for got, e in zip(results(form, x, hidden, out, "silu"), exact, strict=True):
        assert (got.double() - e).norm() < limit * e.norm()


def test_a_second_backward_pass_finds_everything_as_it_was(form):
    x, hidden, out = made(2, 7, True, 3)
    y, leaves = form.mlp(x, hidden, out, ACTIVATIONS["silu"]), wanted(x, hidden, out)
    once = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(y.sum(), leaves)
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)


def test_dropout_of_the_inputs_of_both(form):
    """The slope of a sum by a small step, with the seeds held still."""
    x, hidden, out = made(1, 6, True, 2, drop=0.3)
    leaves = wanted(x, hidden, out)

    def run(*leaves):
        torch.manual_seed(0)
        return form.mlp(x, hidden, out, ACTIVATIONS["gelu"])

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    torch.manual_seed(1)
    assert not torch.equal(form.mlp(x, hidden, out, ACTIVATIONS["gelu"]), run())


def test_it_keeps_the_input_and_what_the_first_linears_gave(form):
    x, hidden, out = made(2, 16, True, 3)
    sizes = []

    def pack(t):
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        form.mlp(x, hidden, out, ACTIVATIONS["silu"])
    thin = sum(t.numel() for m in (*hidden, out) for t in (m.A, m.B))
    assert sum(sizes) == x.numel() + 32 * (2 * F + 6 + 3) + thin
