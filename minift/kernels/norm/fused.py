"""Root-mean-square normalization that keeps x and one number a row.

    y = r x * c        r = 1 / sqrt(‖x‖² / D + eps)        c = offset + w

With h = c * g, g = dL/dy, and D numbers a row:

    dr/dx = -r³ x / D        dx = r h - (r³ / D) (h · x) x        dw = Σ_rows g * r x

On a bf16 base autograd keeps the row in float32 as well, and takes twice as many passes over it.
Without gradients the same lines run past the autograd.Function, whose call costs a single row more
than the norm: so a pass with gradients and one without give the same bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@cache
def number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it serves passes with gradients, too
        return torch.tensor([value], dtype=dtype, device=device)


def normed(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """y (..., D), and r (..., 1) in float32 or better."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    n = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    least = number(eps, wide.dtype, x.device)
    r = torch.addcmul(least, n, n, value=1 / x.shape[-1]).rsqrt_()
    y = wide * r if wide is x else wide.mul_(r)
    if offset:  # 1 + weight would lose the weight's last bits in bf16
        return y.mul_(offset + weight.to(r.dtype)).to(x.dtype), r
    return y.to(x.dtype).mul_(weight), r


class RMSNorm(torch.autograd.Function):
    """x (..., D) -> (..., D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        y, r = normed(x, weight, eps, offset)
        ctx.offset = offset
        ctx.save_for_backward(x, r, weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, r, weight = ctx.saved_tensors
        wide, g = x.to(r.dtype), g.to(r.dtype)
        dx = dw = None
        if ctx.needs_input_grad[1]:
            dw = (g * wide).mul_(r).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            c = weight.to(r.dtype)
            h = g * (c + ctx.offset if ctx.offset else c)
            dot = torch.linalg.vecdot(h, wide)[..., None]  # (..., 1)
            dx = h.mul_(r).addcmul_(wide, dot.mul_(r.pow(3)), value=-1 / x.shape[-1]).to(x.dtype)
        return dx, dw, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x (..., D), weight (D,) -> (..., D)."""
    if not torch.is_grad_enabled():
        return normed(x, weight, eps, offset)[0]
    y: Tensor = RMSNorm.apply(x, weight, eps, offset)
    return y
