"""The norm without gradients against the equation in float64, and beside the readable twin."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.norm import forward, reference


def exact(x, weight, eps, offset):
    x = x.double()
    return x / (x.square().sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt() * (offset + weight)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("shape", [(5,), (1, 1, 576), (3, 7, 64), (2, 1, 4, 8)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_number(dtype, shape, size, offset):
    generator = torch.Generator().manual_seed(3)
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) * size).to(dtype)
    weight = torch.rand(shape[-1], generator=generator, dtype=torch.float64).to(dtype)
    x.view(-1, shape[-1])[0] = 0
    before = x.clone()
    wanted = exact(x, weight.double(), 1e-5, offset)
    error = (forward.rms_norm(x, weight, 1e-5, offset).double() - wanted).abs()
    twin = (reference.rms_norm(x, weight, 1e-5, offset).double() - wanted).abs()
    # two roundings to x's precision, and a few of float32 in between
    precise = max(torch.finfo(dtype).eps, 4e-7 if dtype != torch.float64 else 1e-15)
    assert bool((error <= 2 * precise * wanted.abs() + torch.finfo(dtype).tiny).all())
    assert bool((twin <= 2 * precise * wanted.abs() + torch.finfo(dtype).tiny).all())
    assert torch.equal(x, before)
