"""A matrix in 8 bits: one scale for every row, symmetric around zero.

    s = max|w| / 127 of the row, to bf16        q = w / s to the nearest whole number        w ≈ s q

A row of zeros has s = 0 and q = 0. The error is at most s / 2 a weight, since a scale that bf16
rounded down by its worst, 2⁻⁸, leaves a quotient below 127.5. In bf16 a scale is what the product
of direct.py takes. It is kept in float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from minift.kernels.quantized.reference import piece, room

LARGEST = 127
AT_ONCE = 1 << 19  # numbers: what is made of them stays in the cache


def encode(weight: Tensor) -> dict[str, Tensor]:
    """(out, in), finite: codes int8 (out, in) and scale float32 (out,)."""
    w = weight.detach()
    codes = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    scale = torch.empty(len(w), device=w.device)  # (out,)
    rows = max(1, AT_ONCE // max(1, w.shape[1]))
    for part, q, s in zip(w.split(rows), codes.split(rows), scale.split(rows), strict=True):
        wide = part.float()
        s.copy_((wide.abs().amax(dim=1) / LARGEST).bfloat16())
        # Where the scale is zero, or so small that the quotient overflows, codes are still defined.
        q.copy_((wide / s[:, None]).nan_to_num_(0).clamp_(-LARGEST, LARGEST).round_())
    if not bool(scale.isfinite().all()):  # NaN is the maximum of its row
        raise ValueError("a weight that is not finite")
    return {"codes": codes, "scale": scale}


def decode(stored: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """(out, in); another `dtype` is the float32 value, rounded."""
    codes, scale = stored["codes"], stored["scale"][:, None]
    rows, inputs = codes.shape
    out = room((rows, inputs), dtype, codes.device)
    at_once = piece(inputs, rows, codes.device)
    for part, q, s in zip(
        out.split(at_once), codes.split(at_once), scale.split(at_once), strict=True
    ):
        part.copy_(q * s)
    return out
