"""The fused block is its readable twin: values and every gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.activations import ACTIVATIONS
from minift.kernels.lora.reference import Adapted
from minift.kernels.mlp import fused, reference

D, F = 6, 13


def made(B, T, gated, rank, dtype=torch.float64, biased=True):
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
        return Adapted(linear, A.to(wide).requires_grad_(), B.to(wide).requires_grad_(), 0.7)

    hidden = [adapted(D, F) for _ in range(2 if gated else 1)]
    return drawn(B, T, D).to(dtype).requires_grad_(), hidden, adapted(F, D)


def results(form, x, hidden, out, act):
    y = form.mlp(x, hidden, out, ACTIVATIONS[act])
    wanted = [t for m in (*hidden, out) for t in (m.A, m.B) if t is not None]
    wanted += [x] if x.requires_grad else []
    g = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    return [y, *torch.autograd.grad(y, wanted, g)]


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("B", "T", "rank"), [(1, 1, 1), (3, 7, 8), (2, 128, 6), (1, 5, 0)])
def test_values_and_all_gradients(B, T, rank, gated, act):
    parts = made(B, T, gated, rank)
    for a, b in zip(*(results(form, *parts, act) for form in (fused, reference)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_nothing_below_needs_a_gradient():
    x, hidden, out = made(2, 5, True, 3, biased=False)
    x.requires_grad_(False)
    for a, b in zip(*(results(form, x, hidden, out, "silu") for form in (fused, reference)),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_less_precision_is_within_its_rounding(dtype, limit):
    x, hidden, out = made(3, 64, True, 8, dtype)
    exact, (xd, wide, last) = None, made(3, 64, True, 8)
    for mine, twin in zip((*wide, last), (*hidden, out), strict=True):
        mine.linear.load_state_dict(twin.linear.state_dict())
        mine.A.data.copy_(twin.A.data), mine.B.data.copy_(twin.B.data)
    xd.data.copy_(x.data)
    exact = results(reference, xd, wide, last, "silu")
    for got, e in zip(results(fused, x, hidden, out, "silu"), exact, strict=False):
        assert (got.double() - e).norm() < limit * e.norm()


def test_it_keeps_the_input_and_what_the_first_linears_gave():
    x, hidden, out = made(2, 16, True, 3)
    sizes = []

    def pack(t):
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fused.mlp(x, hidden, out, ACTIVATIONS["silu"])
    thin = sum(t.numel() for m in (*hidden, out) for t in (m.A, m.B))
    assert sum(sizes) == x.numel() + 32 * (2 * F + 6 + 3) + thin
