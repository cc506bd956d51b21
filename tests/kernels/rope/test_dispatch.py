"""The choice of kernels decides."""

from __future__ import annotations

import torch

from minift.kernels.choice import using
from minift.kernels.rope.dispatch import rotate


def test_who_runs():
    x, table = torch.randn(1, 1, 2, 4, requires_grad=True), torch.ones(1, 1, 2, 2)
    assert "Rotate" in str(rotate(x, table, table).grad_fn)
    with using("reference"):
        assert "Rotate" not in str(rotate(x, table, table).grad_fn)
