"""Which form a rotation takes."""

from __future__ import annotations

from torch import Tensor

from minift.kernels import choice
from minift.kernels.rope import fused, reference


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first channels of x (B, H, T, E) by angles (B, 1, T, E/2); the rest stay."""
    return (fused if choice.fused() else reference).rotate(x, cos, sin)
