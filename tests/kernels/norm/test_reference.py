"""The readable norm, by hand and against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minift.kernels.norm.reference import rms_norm


def test_by_hand():
    # mean of squares (9 + 16) / 2 = 12.5, and 3.5 of eps make 16: the root is 4.
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, -1.0])
    assert rms_norm(x, weight, 3.5).tolist() == [[1.5, -1.0]]
    assert rms_norm(x, weight, 3.5, 1.0).tolist() == [[2.25, 0.0]]


@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 8)])
def test_it_is_torchs(shape):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    expected = F.rms_norm(x, shape[-1:], weight, 1e-5)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), expected, rtol=1e-13, atol=1e-13)


def test_half_precision_is_computed_in_float32():
    x = torch.full((1, 1024), 300.0, dtype=torch.float16)  # its square is beyond float16
    assert rms_norm(x, torch.ones(1024, dtype=torch.float16), 1e-5).eq(1).all()
