"""Triton's norm, interpreted, is the readable one: values and gradients."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.norm import reference


@pytest.fixture
def form(interpreted):
    return interpreted("norm.triton")


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
@pytest.mark.parametrize("shape", [(1, 1, 6), (3, 7, 9), (2, 128, 5), (11, 1), (0, 4), (2, 5000)])
def test_values_and_gradients(form, shape, offset):
    x, weight = made(shape)
    (y, dx), (expected, exact) = (gradients(f, x, weight, offset) for f in (form, reference))
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(dx, exact, rtol=0, atol=1e-12)


# float32: sums of 48. bf16: 2^-9 a number at most, twice in y.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_less_precision_is_within_its_rounding(form, dtype, limit, offset):
    x, weight = made((3, 64, 48), dtype)
    wide = x.detach().double().requires_grad_()
    exact = gradients(reference, wide, weight.double(), offset)
    for found, e in zip(gradients(form, x, weight, offset), exact, strict=True):
        assert found.dtype == dtype
        assert (found.double() - e).norm() < limit * e.norm()


@pytest.mark.parametrize("cut", ["heads", "columns", "buffer", "expanded", "backwards"])
def test_rows_that_lie_apart(form, cut):
    x, weight = made((4, 6, 3, 10))
    x = {
        "heads": lambda x: x.transpose(1, 2),  # as q_norm sees them
        "columns": lambda x: torch.stack((x, -x), dim=-1)[..., 0],
        "buffer": lambda x: torch.cat((x, x), dim=-1)[..., :10],
        "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1),
        "backwards": lambda x: x.permute(2, 1, 0, 3),
    }[cut](x.detach()).requires_grad_()
    (y, dx), (twin, exact) = (gradients(f, x, weight, 0.0) for f in (form, reference))
    torch.testing.assert_close(y, twin, rtol=0, atol=1e-12)
    torch.testing.assert_close(dx, exact, rtol=0, atol=1e-12)
    if cut in ("heads", "backwards"):
        assert y.stride() == twin.stride()  # no copy on the way to attention


def test_it_keeps_the_input_and_a_number_a_row(form):
    x, weight = made((3, 8, 16))
    sizes = []

    def pack(t):
        sizes.append(t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        form.rms_norm(x, weight, 1e-5)
    assert sizes == [x.numel(), 24, 16]


def test_gradcheck(form):
    x, weight = made((3, 5))
    assert torch.autograd.gradcheck(lambda x: form.rms_norm(x, weight, 1e-3, 1.0), (x,))
