"""Root-mean-square normalization as the paper writes it: the readable twin of every faster form.

    y = x / sqrt(mean(x²) + eps) * (offset + w)

Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; an offset of 1 is Gemma's. The mean runs over the
last dimension, in float32 (or better) whatever the dtype of x.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x (..., D), weight (D,) -> (..., D)."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if offset:  # 1 + weight would lose the weight's last bits in bf16
        return (wide * (offset + weight.to(wide.dtype))).to(x.dtype)
    return wide.to(x.dtype) * weight
