"""The fused norm is its readable twin: values bit for bit, gradients in float64."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.norm import fused, reference
from minift.kernels.norm.fused import RMSNorm

SHAPES = [(1, 1, 6), (3, 7, 9), (2, 128, 5), (11, 4)]


def made(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(shape[-1], generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), weight


def gradients(form, x, weight, offset):
    y = form.rms_norm(x, weight, 1e-5, offset)
    g = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    return y, torch.autograd.grad(y, x, g)[0]


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, offset):
    x, weight = made(shape)
    (y, dx), (expected, exact) = (gradients(f, x, weight, offset) for f in (fused, reference))
    assert torch.equal(y, expected)
    torch.testing.assert_close(dx, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_in_less_precision_the_gradient_is_within_its_rounding(dtype, limit, offset):
    x, weight = made((3, 64, 48), dtype)
    y, dx = gradients(fused, x, weight, offset)
    assert torch.equal(y, reference.rms_norm(x, weight, 1e-5, offset))
    exact = gradients(reference, x.detach().double().requires_grad_(), weight.double(), offset)[1]
    assert (dx.double() - exact).norm() < limit * exact.norm()


def test_rows_that_lie_apart():
    x, weight = made((4, 6, 10))
    across = x.detach().transpose(0, 1).requires_grad_()
    (y, dx), (twin, exact) = (gradients(f, across, weight, 0.0) for f in (fused, reference))
    assert torch.equal(y, twin)
    assert y.stride() == twin.stride()
    torch.testing.assert_close(dx, exact, rtol=0, atol=1e-12)


def test_gradcheck():
    x, weight = made((3, 5))
    assert torch.autograd.gradcheck(lambda x: RMSNorm.apply(x, weight, 1e-3, 1.0), (x,))
