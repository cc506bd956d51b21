"""NF4: 4 bits a weight, 16 levels that fit the normal distribution, and scales in 8 bits.

Dettmers et al. 2023 (QLoRA), arXiv:2305.14314, section 3 and appendix E. The weights of a matrix,
row after row, are cut into blocks of 64, the last one filled up with zeros:

    c = max|w| of the block        q = the level nearest to w / c        w ≈ c · level[q]

Double quantisation: the c of all blocks, less their mean m, in groups of 256:

    r = max|c - m| of the group    k = (c - m) / (r / 127) to the nearest    c ≈ m + k r / 127

A weight takes 4 bits, 8 / 64 for k and 32 / (64 · 256) for r: 0.516 bytes in all. The paper's k are
8-bit floating-point numbers, these are whole numbers. As in the paper q is found with the exact c.

A byte holds two weights, the first one in its high half; decoding looks both up at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from minift.kernels.quantized.reference import piece, room

BLOCK, GROUP, LARGEST = 64, 256, 127
STEP = 8192  # blocks encoded at a time, so that a large matrix needs no copies of its own size


@cache
def levels() -> tuple[float, ...]:
    """The 16 levels: seven below zero, zero, eight above, -1 and 1 at the ends.

    They are quantiles of the normal distribution at evenly spaced probabilities, of each half apart
    so that zero is one of them, divided by the largest. The outermost probability is short of 1 by
    the mean of half a step among 16 and among 15 levels: 1 - (1/32 + 1/30) / 2.
    """
    end, quantile = 1 - (1 / 32 + 1 / 30) / 2, NormalDist().inv_cdf
    below = [-quantile(end + (0.5 - end) * i / 7) for i in range(7)]
    above = [quantile(end + (0.5 - end) * i / 8) for i in range(8)]
    return tuple(x / above[0] for x in (*below, 0.0, *above[::-1]))


@cache
def borders(device: torch.device) -> Tensor:
    """float32 (15,): half way between two levels."""
    level = torch.tensor(levels(), dtype=torch.float64)
    return ((level[1:] + level[:-1]) / 2).float().to(device)


@cache
def pairs(device: torch.device) -> Tensor:
    """int64 (256,): the bits of the two float32 levels that a byte stands for."""
    level, byte = torch.tensor(levels(), dtype=torch.float32), torch.arange(256)
    both = torch.stack((level[byte >> 4], level[byte & 15]), dim=1)  # (256, 2)
    return both.view(torch.int64).flatten().to(device)


def encode(weight: Tensor) -> dict[str, Tensor]:
    """(out, in), finite: codes uint8 (blocks, 32), scales int8 (blocks,), ranges float32 (groups,)
    and mean float32 (1,)."""
    flat = weight.detach().float().flatten()
    if not bool(flat.isfinite().all()):
        raise ValueError("a weight that is not finite")
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    c = blocks.abs().amax(dim=1)  # (blocks,)
    codes = [nearest(b, s) for b, s in zip(blocks.split(STEP), c.split(STEP), strict=True)]
    mean = c.mean(dtype=torch.float64).float()[None]
    centred = F.pad(c - mean, (0, -len(c) % GROUP)).view(-1, GROUP)
    ranges = centred.abs().amax(dim=1)  # (groups,)
    k = (centred / (ranges[:, None] / LARGEST)).nan_to_num(0).clamp(-LARGEST, LARGEST).round()
    scales = k.flatten()[: len(c)].to(torch.int8)
    return {"codes": torch.cat(codes), "scales": scales, "ranges": ranges, "mean": mean}


def nearest(blocks: Tensor, c: Tensor) -> Tensor:
    """float32 (blocks, 64) with scales (blocks,): codes, uint8 (blocks, 32)."""
    share = (blocks / c[:, None]).nan_to_num(0)  # a block of zeros: 0 / 0
    q = torch.bucketize(share, borders(blocks.device), out_int32=True).to(torch.uint8)
    return q[:, 0::2] << 4 | q[:, 1::2]


def decode(
    stored: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """(out, in); another `dtype` is the float32 value, rounded."""
    codes, k = stored["codes"], stored["scales"]
    step = (stored["ranges"] / LARGEST).repeat_interleave(GROUP)[: len(k)]  # (blocks,)
    # A block near zero may come out a little below it, which would turn its weights round.
    c = (stored["mean"] + k * step).clamp(min=0)
    table = pairs(codes.device)
    out = room((len(k), BLOCK), dtype, codes.device)
    at_once = piece(BLOCK, len(k), codes.device)
    for part, q, size in zip(
        out.split(at_once), codes.split(at_once), c.split(at_once), strict=True
    ):
        level = table.index_select(0, q.flatten().int()).view(torch.float32).view(-1, BLOCK)
        part.copy_(level.mul_(size[:, None]))
    return out.flatten()[: shape[0] * shape[1]].view(shape)
