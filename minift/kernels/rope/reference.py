"""Turning heads by the angles of their positions: the readable twin of every faster form.

    (x_i, x_{i+E/2}) -> (x_i cos a_i - x_{i+E/2} sin a_i, x_{i+E/2} cos a_i + x_i sin a_i)

Su et al. 2021, arXiv:2104.09864, eq. 34, in the half-split layout (model/rope.py has the angles).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first channels of x (B, H, T, E) by angles (B, 1, T, E/2); the rest stay."""
    turned = 2 * cos.shape[-1]
    first, second = x[..., :turned].chunk(2, dim=-1)  # (B, H, T, E/2) each
    halves = [first * cos - second * sin, second * cos + first * sin]
    return torch.cat(halves if turned == x.shape[-1] else [*halves, x[..., turned:]], dim=-1)
