"""Block-quantised weights to float32, in the layouts of GGUF files.

A row of weights is cut into blocks of 32; a block is a float16 scale d (and, in some kinds, a
float16 minimum m), then the small integers q, and nothing between the blocks:

    Q8_0   34 bytes   d  q[32] int8                      w[i] = d * q[i]
    Q4_0   18 bytes   d  16 bytes of two nibbles         w[i] = d * (q[i] - 8)
    Q4_1   20 bytes   d  m  16 bytes of two nibbles      w[i] = d * q[i] + m

Byte j of the nibbles holds q[j] in its low half and q[j + 16] in its high half. Product and sum
are rounded one after the other, in float32, as the gguf package does it: same bits. Layout source:
ggml-common.h (block_q8_0, block_q4_0, block_q4_1); little-endian.

A kind is a row of `KINDS`: its block's size, and a function that fills float32 weights from blocks.
The work is done a megabyte at a time, so that what the steps hand on to each other is still in cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 65536  # blocks at a time: 2 MiB of float32, and enough to share between threads


def _scales(blocks: Tensor, count: int) -> list[Tensor]:
    """The float16 numbers that a block begins with, in float32."""
    halves = blocks.view(torch.float16)[:, :count].float()  # (blocks, count)
    return [halves[:, i : i + 1] for i in range(count)]  # (blocks, 1) each


def _nibbles(packed: Tensor) -> Tensor:
    q = torch.empty(len(packed), 32, dtype=torch.uint8)
    torch.bitwise_and(packed, 15, out=q[:, :16])
    torch.bitwise_right_shift(packed, 4, out=q[:, 16:])
    return q  # (blocks, 32)


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    (d,) = _scales(blocks, 1)
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(d)


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    (d,) = _scales(blocks, 1)
    out.copy_(_nibbles(blocks[:, 2:])).sub_(8).mul_(d)


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    d, m = _scales(blocks, 2)
    out.copy_(_nibbles(blocks[:, 4:])).mul_(d).add_(m)


class Kind(NamedTuple):
    weights: int
    bytes: int
    fill: Callable[[Tensor, Tensor], None]  # blocks (n, bytes) uint8 -> out (n, weights) float32


KINDS = {
    "Q8_0": Kind(32, 34, _q8_0),
    "Q4_0": Kind(32, 18, _q4_0),
    "Q4_1": Kind(32, 20, _q4_1),
}
BLOCKS = {name: (kind.weights, kind.bytes) for name, kind in KINDS.items()}


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor on numpy's memory, which comes in huge pages where Linux has them.

    Touching new memory page by page costs more than the arithmetic here: 0.5 s of 0.8 s for 135 M
    weights. The start is a multiple of 64 bytes, as torch's own.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return torch.from_numpy(memory[start : start + size]).view(dtype).reshape(shape)


def dequantize(kind: str, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights of `raw`, uint8 (bytes,) or (rows, bytes): (weights,) or (rows, weights).

    Another `dtype` is the float32 value, rounded.
    """
    weights, size, fill = KINDS[kind]
    assert raw.dtype == torch.uint8
    assert raw.shape[-1] % size == 0
    shape = (*raw.shape[:-1], raw.shape[-1] // size * weights)
    blocks = raw.reshape(-1, size)  # (blocks, size)
    out = fresh((len(blocks), weights), dtype)  # (blocks, weights)
    for at in range(0, len(blocks), CHUNK):
        part = out[at : at + CHUNK]
        exact = part if dtype == torch.float32 else torch.empty(part.shape)
        fill(blocks[at : at + CHUNK], exact)
        if exact is not part:
            part.copy_(exact)
    return out.reshape(shape)
