"""Products of few rows that read the stored 8 bits themselves: no weight is decoded.

    y = s ⊙ (x qᵀ) + b          x bf16 (N, in) · q int8 (out, in) · s float32 (out,)

torch's kernel for small N (`_weight_int8pack_mm`) multiplies bf16 by whole numbers exactly, adds up
in float32 and rounds once, to bf16. It is asked for x qᵀ; the scales, which it would round to bf16,
are multiplied after it in float32. So y is rounded twice, 2⁻⁸ of it each time at most; the readable
twin (decode, then F.linear) rounds every weight, and y once.

Up to ROWS rows that is faster than decoding: 5 to 10 times for one row, 1.2 times for 32; for 64
it is slower on wide matrices. In float32 the kernel's activations would lose 16 of their bits:
those models decode.

Scales rounded to bf16 would save a call, and cost: over 24 texts, SmolLM2's logits are off the
float32 model's by 0.26 (root of the mean square), here by 0.17, decoded by 0.23.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from minift.kernels import choice

ROWS = 32
STEP = 32  # TRAP: the kernel reads beyond the end of rows that are no multiple of its vectors
AVAILABLE = hasattr(torch.ops.aten, "_weight_int8pack_mm")


def obstacle(kind: str, inputs: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why products of this kind decode the weight first; None where they read it as it is."""
    if kind != "int8":
        return f"{kind} has no product of its own"
    if dtype != torch.bfloat16:
        return f"the work is in {str(dtype).removeprefix('torch.')}, which needs --dtype bf16"
    if inputs % STEP:
        return f"rows of {inputs} are no multiple of {STEP}"
    if device.type != "cpu":
        return f"the model is on {device.type}"
    if not AVAILABLE:
        return f"torch {torch.__version__} has no such product"
    return None


def fits(kind: str, x: Tensor) -> bool:
    """Whether x (..., in) is multiplied here."""
    few = x.numel() <= ROWS * x.shape[-1]
    return few and choice.fused() and obstacle(kind, x.shape[-1], x.dtype, x.device) is None


@cache
def ones(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bfloat16)


def product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) -> (..., out)."""
    flat, rows = x.reshape(-1, x.shape[-1]).contiguous(), codes.shape[0]
    y = torch.ops.aten._weight_int8pack_mm(flat, codes, ones(rows))  # (N, out) bf16
    # Each of the two is computed in float32, as its operand is, and rounded once.
    y = y.mul_(scale) if bias is None else (y * scale + bias).to(x.dtype)
    return y.view(*x.shape[:-1], rows)
