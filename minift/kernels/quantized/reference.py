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
The work goes chunk by chunk, so that what the steps hand on to each other is still in cache. It is
numpy's, on one thread: torch, whose threads wait for each other after every step, was twice as fast
on two idle cores and a hundred times slower when another program kept one of them busy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 16_384  # blocks at a time: 2 MiB of float32
SERIAL = 1024  # blocks that torch rounds without waking its threads (32,768 numbers)


def _scales(blocks: np.ndarray, count: int) -> list[np.ndarray]:
    """The float16 numbers that a block begins with, in float32."""
    halves = blocks.view("<f2")[:, :count].astype(np.float32)  # (blocks, count)
    return [halves[:, i : i + 1] for i in range(count)]  # (blocks, 1) each


def _nibbles(packed: np.ndarray) -> np.ndarray:
    packed = np.ascontiguousarray(packed)  # short rows are slow to compute on
    return np.concatenate([packed & 15, packed >> 4], axis=1)  # (blocks, 32)


def _q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    (d,) = _scales(blocks, 1)
    np.multiply(blocks[:, 2:].view(np.int8), d, out=out)


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    (d,) = _scales(blocks, 1)
    np.multiply(_nibbles(blocks[:, 2:]).view(np.int8) - np.int8(8), d, out=out)


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    d, m = _scales(blocks, 2)
    np.multiply(_nibbles(blocks[:, 4:]), d, out=out)
    out += m


class Kind(NamedTuple):
    weights: int
    bytes: int
    fill: Callable[[np.ndarray, np.ndarray], None]  # uint8 (n, bytes) -> out float32 (n, weights)


KINDS = {
    "Q8_0": Kind(32, 34, _q8_0),
    "Q4_0": Kind(32, 18, _q4_0),
    "Q4_1": Kind(32, 20, _q4_1),
}
BLOCKS = {name: (kind.weights, kind.bytes) for name, kind in KINDS.items()}


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor on numpy's memory, which comes in huge pages where Linux has them.

    Touching new memory in small pages would cost more than the arithmetic here. The start is a
    multiple of 64 bytes, as torch's own is.
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
    blocks = raw.reshape(-1, size).numpy()  # (blocks, bytes)
    out = fresh((len(blocks), weights), dtype)  # (blocks, weights)

    for start in range(0, len(blocks), CHUNK):
        part = out[start : start + CHUNK]
        exact = part if dtype == torch.float32 else torch.empty(part.shape)
        with np.errstate(all="ignore"):  # a scale may be infinite or NaN: then so are its weights
            fill(blocks[start : start + CHUNK], exact.numpy())
        if exact is not part:
            for rounded, wide in zip(part.split(SERIAL), exact.split(SERIAL), strict=True):
                rounded.copy_(wide)
    return out.reshape(*raw.shape[:-1], raw.shape[-1] // size * weights)
