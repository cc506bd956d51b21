"""Which form a norm takes: the fused one wherever its weight is not being trained.

The fused form saves memory for a backward pass. Where there will be none the readable one runs: the
same bits, without the call of an autograd.Function, which costs a single row more than the norm.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minift.kernels import choice
from minift.kernels.norm import fused, reference


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x (..., D), weight (D,) -> (..., D)."""
    if not choice.fused() or (weight.requires_grad and torch.is_grad_enabled()):
        return reference.rms_norm(x, weight, eps, offset)
    if choice.triton(x):
        from minift.kernels.norm import triton  # nothing else imports it

        return triton.rms_norm(x, weight, eps, offset)
    form = fused if torch.is_grad_enabled() else reference
    return form.rms_norm(x, weight, eps, offset)
