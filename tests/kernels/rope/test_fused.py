"""The fused rotation is its readable twin, in every layout; its gradient turns back."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.rope import fused, reference


def made(B, H, T, E, turned, dtype=torch.float64):
    generator = torch.Generator().manual_seed(T)
    x = torch.randn(B, T, H, E, generator=generator, dtype=torch.float64).to(dtype)
    angle = torch.randn(B, 1, T, turned // 2, generator=generator, dtype=torch.float64)
    return x.transpose(1, 2).requires_grad_(), angle.cos().to(dtype), angle.sin().to(dtype)


@pytest.mark.parametrize("shape", [(1, 1, 1, 2, 2), (3, 2, 7, 10, 10), (2, 3, 128, 12, 6)])
def test_values_and_gradients(shape):
    x, cos, sin = made(*shape)
    found = []
    for form in (fused, reference):
        y = form.rotate(x, cos, sin)
        g = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape)
        found.append((y, torch.autograd.grad(y, x, g)[0]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_it_keeps_the_layout_of_its_input():
    x, cos, sin = made(2, 3, 5, 8, 8)
    assert fused.rotate(x, cos, sin).stride() == x.stride()
    plain = x.detach().contiguous()
    assert torch.equal(fused.rotate(plain, cos, sin), fused.rotate(x, cos, sin))


def test_bf16_is_rounded_no_more_than_the_twin():
    x, cos, sin = made(2, 3, 33, 16, 16, torch.bfloat16)
    exact = reference.rotate(x.double(), cos.double(), sin.double())
    ours, twin = (form.rotate(x, cos, sin).double() - exact for form in (fused, reference))
    assert ours.norm() <= 1.01 * twin.norm()


def test_gradcheck():
    x, cos, sin = made(1, 2, 3, 6, 4)
    assert torch.autograd.gradcheck(lambda x: fused.rotate(x, cos, sin), (x,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 2, 2), (3, 4, 1, 12, 6), (3, 2, 7, 10, 10)])
def test_without_gradients_the_bits_are_the_same(shape, dtype):
    x, cos, sin = made(*shape, dtype)
    with torch.no_grad():
        y = fused.rotate(x, cos, sin)
    assert y.grad_fn is None
    assert torch.equal(y, fused.rotate(x, cos, sin))
