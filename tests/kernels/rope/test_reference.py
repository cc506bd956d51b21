"""Turning a pair by hand (the angles: tests/model/test_rope.py)."""

from __future__ import annotations

import torch

from minift.kernels.rope.reference import rotate


def test_a_quarter_turn_of_the_first_pair_and_none_of_the_rest():
    x = torch.tensor([3.0, 5.0, 7.0]).view(1, 1, 1, 3)
    cos, sin = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    assert rotate(x, cos, sin).flatten().tolist() == [-5, 3, 7]
