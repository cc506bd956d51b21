"""The fused block runs where the group's kernel does."""

from __future__ import annotations

import torch
from torch import nn

from minift.kernels.activations import ACTIVATIONS
from minift.kernels.choice import using
from minift.kernels.lora.reference import Adapted
from minift.kernels.mlp.dispatch import mlp


def test_who_runs():
    x = torch.randn(2, 4, requires_grad=True)
    up, down = (Adapted(nn.Linear(4, 4).requires_grad_(False)) for _ in range(2))

    def runs():
        return "MLP" in str(mlp(x, [up], down, ACTIVATIONS["silu"]).grad_fn.next_functions)

    assert runs()
    with using("reference"):
        assert not runs()
    down.linear.requires_grad_(True)
    assert not runs()
