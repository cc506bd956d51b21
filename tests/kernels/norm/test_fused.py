"""The fused norm is its readable twin: values and both gradients."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.norm import fused, reference
from minift.kernels.norm.fused import RMSNorm

SHAPES = [(1, 1, 6), (3, 7, 9), (2, 128, 5), (11, 4)]


def made(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(shape))
    x, weight = (
        torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
        for size in (shape, shape[-1:])
    )
    return x.requires_grad_(), weight.requires_grad_()


def results(form, x, weight, offset):
    """The value, and the gradients of both."""
    y = form.rms_norm(x, weight, 1e-5, offset)
    g = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape).to(y.dtype)
    return y, *torch.autograd.grad(y, (x, weight), g)


def alike(found, exact):
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, offset):
    x, weight = made(shape)
    alike(*(results(form, x, weight, offset) for form in (fused, reference)))


# float32: sums of 48, of the weight's gradient 192. bf16: 2^-9 a number at most, twice in y.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_less_precision_is_within_its_rounding(dtype, limit, offset):
    x, weight = made((3, 64, 48), dtype)
    wide = (t.detach().double().requires_grad_() for t in (x, weight))
    exact = results(reference, *wide, offset)
    for found, e in zip(results(fused, x, weight, offset), exact, strict=True):
        assert found.dtype == dtype
        assert (found.double() - e).norm() < limit * e.norm()


@pytest.mark.parametrize("size", [0.0, 1e-3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_and_large_rows(dtype, size):
    x, weight = made((2, 576), torch.float64)
    x, weight = (x * size).to(dtype), weight.to(dtype)
    y = fused.rms_norm(x, weight, 1e-5)
    exact = reference.rms_norm(x.double(), weight.double(), 1e-5)
    # two roundings to the dtype, and a few of float32 in between
    torch.testing.assert_close(
        y.double(), exact, rtol=2 * max(torch.finfo(dtype).eps, 4e-7), atol=0
    )


def test_rows_that_lie_apart():
    x, weight = made((4, 6, 10))
    across = x.detach().transpose(0, 1).requires_grad_()
    found, twin = (results(form, across, weight, 0.0) for form in (fused, reference))
    alike(found, twin)
    assert found[0].stride() == twin[0].stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 576), (3, 7, 9)])
def test_the_bits_do_not_depend_on_gradients(dtype, shape):
    x, weight = made(shape, dtype)
    with torch.no_grad():
        y = fused.rms_norm(x, weight, 1e-5)
    assert y.grad_fn is None
    assert torch.equal(fused.rms_norm(x, weight, 1e-5), y)
    with torch.inference_mode():
        assert torch.equal(fused.rms_norm(x, weight, 1e-5), y)


def test_a_frozen_weight_has_no_gradient():
    x, weight = made((3, 8))
    y = fused.rms_norm(x, weight.detach(), 1e-5)
    y.sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def test_gradcheck():
    x, weight = made((3, 5))
    assert torch.autograd.gradcheck(lambda x, w: RMSNorm.apply(x, w, 1e-3, 1.0), (x, weight))
