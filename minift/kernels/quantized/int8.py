"""A matrix in 8 bits: one scale for every row, symmetric around zero.

    s = max|w| / 127 of the row        q = w / s to the nearest whole number        w ≈ s q

A row of zeros has s = 0 and q = 0. The error is at most s / 2 a weight.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from minift.kernels.quantized.reference import piece, room

LARGEST = 127


def encode(weight: Tensor) -> dict[str, Tensor]:
    """(out, in), finite: codes int8 (out, in) and scale float32 (out,)."""
    w = weight.detach().float()
    if not bool(w.isfinite().all()):
        raise ValueError("a weight that is not finite")
    scale = w.abs().amax(dim=1) / LARGEST  # (out,)
    # Where the scale is zero, or so small that the quotient overflows, the codes are still defined.
    q = (w / scale[:, None]).nan_to_num(0).clamp(-LARGEST, LARGEST).round()
    return {"codes": q.to(torch.int8), "scale": scale}


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
