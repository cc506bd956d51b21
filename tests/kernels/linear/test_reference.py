"""The readable twin is the linears themselves."""

from __future__ import annotations

import torch
from torch import nn

from minift.kernels.linear.reference import linears


def test_each_output_is_its_linears():
    members = [nn.Linear(6, 4), nn.Linear(6, 3, bias=False)]
    x = torch.randn(2, 5, 6)
    for y, member in zip(linears(x, members), members, strict=True):
        assert torch.equal(y, member(x))
