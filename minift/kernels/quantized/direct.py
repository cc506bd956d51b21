"""Products of few rows that read the stored 8 bits themselves: no weight is decoded.

    y = s ⊙ (x qᵀ) + b          x bf16 (N, in) · q int8 (out, in) · s bf16 (out,)

torch's kernel for small N (`_weight_int8pack_mm`) multiplies bf16 by whole numbers exactly, adds up
in float32, multiplies by the scale (a bf16 number from the start: int8.py) and rounds once, to
bf16; a bias rounds again. The readable twin (decode, then F.linear) rounds every weight, and y.

Up to ROWS rows that is faster than decoding: 5 to 10 times for one row, 1.2 times for 32; for 64
it is slower on wide matrices. In float32 the kernel's activations would lose 16 of their bits:
those models decode.
"""

from __future__ import annotations

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


def product(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in), scale (out,) bf16 -> (..., out)."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    y: Tensor = torch.ops.aten._weight_int8pack_mm(flat, codes, scale)  # (N, out)
    if bias is not None:
        y += bias
    return y.view(*x.shape[:-1], -1)
