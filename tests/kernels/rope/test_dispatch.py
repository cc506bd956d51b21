"""The choice of kernels decides."""

from __future__ import annotations

import torch

from minift.kernels.choice import using
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
