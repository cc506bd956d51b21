"""Root-mean-square normalization that keeps x and one number a row.

    y = r x * c        r = 1 / sqrt(mean(x²) + eps)        c = offset + w, frozen

With h = c * g, g = dL/dy, and D numbers a row:

    dr/dx = -r³ x / D        dx = r h - (r³ / D) (h · x) x

On a bf16 base autograd keeps the row in float32 as well, and takes twice as many passes over it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class RMSNorm(torch.autograd.Function):
    """x (..., D) -> (..., D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        r = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # (..., 1)
        ctx.offset = offset
        ctx.save_for_backward(x, r, weight)
        y = wide * r
        if offset:
            return y.mul_(offset + weight.to(wide.dtype)).to(x.dtype)
        return y.to(x.dtype).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, r, weight = ctx.saved_tensors
        c = weight.to(r.dtype)
        h = g.to(r.dtype) * (c + ctx.offset if ctx.offset else c)
        wide = x.to(r.dtype)
        dot = torch.linalg.vecdot(h, wide)[..., None]  # (..., 1)
        dx = h.mul_(r).addcmul_(wide, dot.mul_(r.pow(3)), value=-1 / x.shape[-1])
        return dx.to(x.dtype), None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x (..., D), weight (D,) -> (..., D)."""
    y: Tensor = RMSNorm.apply(x, weight, eps, offset)
    return y
