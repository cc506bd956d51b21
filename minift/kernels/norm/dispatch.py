"""Which form a norm takes: the fused one wherever its weight is not being trained."""

from __future__ import annotations

import torch
from torch import Tensor

from minift.kernels import choice
from minift.kernels.norm import fused, reference


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x (..., D), weight (D,) -> (..., D)."""
    trained = weight.requires_grad and torch.is_grad_enabled()
    form = fused if choice.fused() and not trained else reference
    return form.rms_norm(x, weight, eps, offset)
