"""Which form a rotation takes."""

from __future__ import annotations

import torch
from torch import Tensor

from minift.kernels import choice
from minift.kernels.rope import reference


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first channels of x (B, H, T, E) by angles (B, 1, T, E/2); the rest stay."""
    if not choice.fused():
        return reference.rotate(x, cos, sin)
    if choice.triton(x):
        from minift.kernels.rope import triton

        return triton.rotate(x, cos, sin)
    from minift.kernels.rope import fused

    return fused.rotate(x, cos, sin)


def rotate_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q (B, H, T, E) and k (B, K, T, E) by the same angles: in one kernel, where there is one."""
    if choice.fused() and choice.triton(q):
        from minift.kernels.rope import triton

        return triton.rotate_both(q, k, cos, sin)
    if choice.fused() and q.shape[2] == 1 and not torch.is_grad_enabled():
        from minift.kernels.rope import fused

        return fused.turn_both(q, k, cos, sin)
    return rotate(q, cos, sin), rotate(k, cos, sin)
