"""Which form a norm takes: the fused one; on a GPU Triton's, which trains no weight."""

from __future__ import annotations

import torch
from torch import Tensor

from minift.kernels import choice
from minift.kernels.norm import reference


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x (..., D), weight (D,) -> (..., D)."""
    if not choice.fused():
        return reference.rms_norm(x, weight, eps, offset)
    if choice.triton(x) and not (weight.requires_grad and torch.is_grad_enabled()):
        from minift.kernels.norm import triton  # nothing else imports it

        return triton.rms_norm(x, weight, eps, offset)
    from minift.kernels.norm import fused

    return fused.rms_norm(x, weight, eps, offset)
