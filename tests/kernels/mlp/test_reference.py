"""The readable block by hand."""

from __future__ import annotations

import torch
from torch import nn

from minift.kernels.activations import ACTIVATIONS
from minift.kernels.lora.reference import Adapted
from minift.kernels.mlp.reference import mlp


def linear(rows):
    made = nn.Linear(len(rows[0]), len(rows), bias=False)
    made.weight.data = torch.tensor(rows)
    return made


def test_by_hand():
    x = torch.tensor([[1.0, -2.0]])
    gate, up = Adapted(linear([[1.0, 0.0], [0.0, 1.0]])), Adapted(linear([[3.0, 0.0], [0.0, 1.0]]))
    change = (torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0], [2.0]]))  # adds 2 (h1 + h2) to y2
    down = Adapted(linear([[1.0, 1.0], [1.0, -1.0]]), *change, 0.5)
    relu = ACTIVATIONS["relu"]
    # relu(gate) = 1, 0; times up = 3, 0; down = 3, 3 and the change 0, 3
    assert mlp(x, [gate, up], down, relu).tolist() == [[3.0, 6.0]]
    # without a gate: relu(3, -2) = 3, 0
    assert mlp(x, [up], down, relu).tolist() == [[3.0, 6.0]]
