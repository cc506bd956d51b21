"""Triton's rotation, interpreted, is the readable one in every layout; its gradient turns back."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.rope import reference


@pytest.fixture
def form(interpreted):
    return interpreted("rope.triton")


def made(B, H, K, T, E, turned, dtype=torch.float64):
    generator = torch.Generator().manual_seed(T)
    q, k = (torch.randn(B, T, n, E, generator=generator, dtype=torch.float64) for n in (H, K))
    angle = torch.randn(B, 1, T, turned // 2, generator=generator, dtype=torch.float64)
    heads = [x.to(dtype).transpose(1, 2).requires_grad_() for x in (q, k)]
    return *heads, angle.cos().to(dtype), angle.sin().to(dtype)


def results(ys, heads):
    gs = [torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape) for y in ys]
    gs = [g.to(y.dtype) for g, y in zip(gs, ys, strict=True)]
    return [*ys, *torch.autograd.grad(ys, heads, gs)]


def twins(q, k, cos, sin):
    return results([reference.rotate(x, cos, sin) for x in (q, k)], (q, k))


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1, 2, 2), (3, 2, 1, 7, 10, 10), (1, 3, 1, 128, 14, 6), (2, 9, 3, 5, 12, 8),
     (0, 2, 1, 3, 4, 4)],
)  # fmt: skip
def test_values_and_gradients_of_both_and_of_one(form, shape):
    q, k, cos, sin = made(*shape)
    expected = twins(q, k, cos, sin)
    found = results(form.rotate_both(q, k, cos, sin), (q, k))
    alone = results([form.rotate(q, cos, sin), form.rotate(k, cos, sin)], (q, k))
    for ours in (found, alone):
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("cut", ["contiguous", "columns", "one table", "apart"])
def test_any_strides(form, cut):
    q, k, cos, sin = (x.detach() for x in made(2, 4, 2, 6, 10, 8))
    if cut == "contiguous":
        q, k = q.contiguous(), k.contiguous()
    elif cut == "columns":
        q, k = (torch.stack((x, -x), dim=-1)[..., 0] for x in (q, k))
    elif cut == "one table":  # of every row
        cos, sin = cos[:1], sin[:1]
    else:
        cos = torch.stack((cos, cos), dim=-1)[..., 0]
    q, k = q.requires_grad_(), k.requires_grad_()
    found = results(form.rotate_both(q, k, cos, sin), (q, k))
    for a, b in zip(found, twins(q, k, cos, sin), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_the_results_lie_as_projections_do(form):
    q, k, cos, sin = made(2, 3, 1, 5, 8, 8)
    for y, x in zip(form.rotate_both(q, k, cos, sin), (q, k), strict=True):
        assert y.stride() == x.stride()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1.0)])
def test_less_precision_is_rounded_no_more_than_the_twin(form, dtype, limit):
    """float32: against the truth. bf16: beside the twin, which rounds thrice."""
    q, k, cos, sin = made(2, 3, 1, 33, 16, 16, dtype)
    wide = [x.detach().double().requires_grad_() for x in (q, k)]
    exact = twins(*wide, cos.double(), sin.double())
    found, twin = results(form.rotate_both(q, k, cos, sin), (q, k)), twins(q, k, cos, sin)
    for a, b, e in zip(found, twin, exact, strict=True):
        ours, theirs = ((t.double() - e).norm() for t in (a, b))
        assert ours < limit * (e.norm() if dtype == torch.float32 else theirs)


def test_gradcheck(form):
    q, k, cos, sin = made(1, 2, 1, 3, 6, 4)
    assert torch.autograd.gradcheck(
        lambda q, k: form.rotate_both(q, k, cos, sin), (q, k), fast_mode=True
    )
