"""The choice of kernels decides."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.choice import using
from minift.kernels.rope import fused, reference
from minift.kernels.rope.dispatch import rotate, rotate_both


def test_who_runs():
    x, table = torch.randn(1, 1, 2, 4, requires_grad=True), torch.ones(1, 1, 2, 2)
    assert "Rotate" in str(rotate(x, table, table).grad_fn)
    with using("reference"):
        assert "Rotate" not in str(rotate(x, table, table).grad_fn)


def test_both_is_each():
    q, k, table = torch.randn(1, 4, 2, 4), torch.randn(1, 2, 2, 4), torch.rand(1, 1, 2, 2)
    for kernels in ("torch", "reference"):
        with using(kernels):
            both = rotate_both(q, k, table, table)
            for found, x in zip(both, (q, k), strict=True):
                assert torch.equal(found, rotate(x, table, table))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("turned", [6, 2])  # of 6 channels
def test_a_single_position_without_gradients(turned, dtype):
    generator = torch.Generator().manual_seed(1)
    q, k = (torch.randn(3, 1, n, 6, generator=generator).to(dtype) for n in (4, 2))
    q, k = q.transpose(1, 2), k.transpose(1, 2)  # heads beside each other, as they come
    angle = torch.rand(3, 1, 1, turned // 2, generator=generator)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    with torch.no_grad():
        both = rotate_both(q, k, cos, sin)
        if turned == 6:
            widened = fused.turn_widened(q, k, *fused.widened(cos, sin))
            assert all(map(torch.equal, widened, both))
    for found, x in zip(both, (q, k), strict=True):
        assert torch.equal(found, fused.rotate(x, cos, sin))
        exact = reference.rotate(x.double(), cos.double(), sin.double())
        # in bf16 a product and the sum are rounded
        limit = 2**-7 * float(x.abs().max()) if dtype == torch.bfloat16 else 1e-15
        torch.testing.assert_close(found.double(), exact, rtol=0, atol=limit)
