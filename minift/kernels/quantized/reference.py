"""Block-quantised weights to float32, in the layouts of GGUF files.

A row of weights is cut into blocks; a block holds a float16 scale d (and, in some kinds, a float16
minimum m), small integers q of a few bits each, and nothing lies between the blocks. Of 32 weights:

    Q8_0   34 bytes   d  q[32] int8                            w[i] = d * q[i]
    Q4_0   18 bytes   d  16 bytes of nibbles                   w[i] = d * (q[i] - 8)
    Q4_1   20 bytes   d  m  16 bytes of nibbles                w[i] = d * q[i] + m
    Q5_0   22 bytes   d  4 bytes of fifth bits  16 of nibbles  w[i] = d * (q[i] - 16)
    Q5_1   24 bytes   d  m  4 of fifth bits  16 of nibbles     w[i] = d * q[i] + m

Byte j of the nibbles holds q[j] in its low half and q[j + 16] in its high half. Of 256 weights, in
parts with an integer scale s (and minimum t) of their own, which d (and m) scales in turn:

    Q2_K   84 bytes   s, t: 16 bytes of nibbles  q: 64 bytes  d  m           w = d s q - m t
    Q3_K  110 bytes   third bits: 32 bytes  q: 64 bytes  s: 12 bytes  d      w = d (s - 32) (q - 4)
    Q4_K  144 bytes   d  m  s, t: 12 bytes  q: 128 bytes                     w = d s q - m t
    Q5_K  176 bytes   d  m  s, t: 12 bytes  fifth bits: 32  q: 128 bytes     w = d s q - m t
    Q6_K  210 bytes   q: 128 bytes  upper two bits: 64  s: 16 int8  d        w = d s (q - 32)

A part is 16 weights in Q2_K, Q3_K and Q6_K, 32 in the other two. Products and sums are rounded one
after the other, in float32, as the gguf package does it: same bits. Layout source: ggml-common.h
(block_q8_0 to block_q6_K); little-endian.

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

CHUNK = 16_384 * 32  # weights at a time: 2 MiB of float32
SERIAL = 1024 * 32  # weights that torch works on without waking its threads


def _scales(blocks: np.ndarray, count: int, at: int = 0) -> list[np.ndarray]:
    """The `count` float16 numbers at byte `at` of every block, in float32."""
    halves = blocks.view("<f2")[:, at // 2 : at // 2 + count].astype(np.float32)  # (blocks, count)
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


def _spread(packed: np.ndarray, run: int, bits: int) -> np.ndarray:
    """Numbers of `bits` bits. A run of bytes gives its lowest bits, then its next ones, and so on.

    Two bytes in one run of four-bit numbers: 0x21 0x43 -> 1 3 2 4.
    """
    runs = np.ascontiguousarray(packed).reshape(len(packed), -1, 1, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    numbers = (runs >> shifts) & np.uint8((1 << bits) - 1)  # (blocks, runs, 8 / bits, run)
    return numbers.reshape(len(packed), -1)


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    (d,) = _scales(blocks, 1)
    q = _nibbles(blocks[:, 6:]) | _spread(blocks[:, 2:6], 1, 1) << np.uint8(4)
    np.multiply(q.view(np.int8) - np.int8(16), d, out=out)


def _q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    d, m = _scales(blocks, 2)
    q = _nibbles(blocks[:, 8:]) | _spread(blocks[:, 4:8], 1, 1) << np.uint8(4)
    np.multiply(q, d, out=out)
    out += m


def _parts(q: np.ndarray, scale: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Fill `out` with q times the scale of its part; returns `out`, as (blocks, parts, of each)."""
    parts = out.reshape(*scale.shape, -1)
    np.multiply(q.reshape(parts.shape), scale[:, :, None], out=parts)
    return parts


def _q2_k(blocks: np.ndarray, out: np.ndarray) -> None:
    d, m = _scales(blocks, 2, 80)
    s, t = blocks[:, :16] & 15, blocks[:, :16] >> 4
    parts = _parts(_spread(blocks[:, 16:80], 32, 2), d * s, out)
    parts -= (m * t)[:, :, None]


def _q3_k(blocks: np.ndarray, out: np.ndarray) -> None:
    (d,) = _scales(blocks, 1, 108)
    s = _spread(blocks[:, 96:104], 8, 4) | _spread(blocks[:, 104:108], 4, 2) << np.uint8(4)
    q = _spread(blocks[:, 32:96], 32, 2) | _spread(blocks[:, :32], 32, 1) << np.uint8(2)
    _parts(q.view(np.int8) - np.int8(4), d * (s.view(np.int8) - np.int8(32)), out)


def _six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """s and t of Q4_K and Q5_K: 8 of 6 bits each, in three groups of four bytes.

    The first two groups are s[:4] and t[:4]; above each stand the upper two bits of s[4:] or t[4:],
    whose lower four are the halves of the third.
    """
    a, b, c = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    s = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=1)
    t = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=1)
    return s, t  # (blocks, 8) each


def _q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    d, m = _scales(blocks, 2)
    s, t = _six_bits(blocks[:, 4:16])
    parts = _parts(_spread(blocks[:, 16:], 32, 4), d * s, out)
    parts -= (m * t)[:, :, None]


def _q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    d, m = _scales(blocks, 2)
    s, t = _six_bits(blocks[:, 4:16])
    q = _spread(blocks[:, 48:], 32, 4) | _spread(blocks[:, 16:48], 32, 1) << np.uint8(4)
    parts = _parts(q, d * s, out)
    parts -= (m * t)[:, :, None]


def _q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    (d,) = _scales(blocks, 1, 208)
    s = blocks[:, 192:208].view(np.int8)
    q = _spread(blocks[:, :128], 64, 4) | _spread(blocks[:, 128:192], 32, 2) << np.uint8(4)
    _parts(q.view(np.int8) - np.int8(32), d * s, out)


class Kind(NamedTuple):
    weights: int
    bytes: int
    fill: Callable[[np.ndarray, np.ndarray], None]  # uint8 (n, bytes) -> out float32 (n, weights)


KINDS = {
    "Q8_0": Kind(32, 34, _q8_0),
    "Q4_0": Kind(32, 18, _q4_0),
    "Q4_1": Kind(32, 20, _q4_1),
    "Q5_0": Kind(32, 22, _q5_0),
    "Q5_1": Kind(32, 24, _q5_1),
    "Q2_K": Kind(256, 84, _q2_k),
    "Q3_K": Kind(256, 110, _q3_k),
    "Q4_K": Kind(256, 144, _q4_k),
    "Q5_K": Kind(256, 176, _q5_k),
    "Q6_K": Kind(256, 210, _q6_k),
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


def room(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor to decode into."""
    if device.type == "cpu":
        return fresh(shape, dtype)
    return torch.empty(shape, dtype=dtype, device=device)


def piece(width: int, rows: int, device: torch.device) -> int:
    """Rows to decode at a time with torch: few enough for one thread on a CPU, else all."""
    return max(1, SERIAL // width if device.type == "cpu" else rows)


def dequantize(kind: str, raw: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights of `raw`, uint8 (bytes,) or (rows, bytes): (weights,) or (rows, weights).

    Another `dtype` is the float32 value, rounded.
    """
    weights, size, fill = KINDS[kind]
    assert raw.dtype == torch.uint8
    assert raw.shape[-1] % size == 0
    blocks = raw.reshape(-1, size).numpy()  # (blocks, bytes)
    out = fresh((len(blocks), weights), dtype)  # (blocks, weights)

    step = max(1, CHUNK // weights)
    for start in range(0, len(blocks), step):
        part = out[start : start + step]
        exact = part if dtype == torch.float32 else torch.empty(part.shape)
        with np.errstate(all="ignore"):  # a scale may be infinite or NaN: then so are its weights
            fill(blocks[start : start + step], exact.numpy())
        if exact is not part:
            serial = SERIAL // weights
            for rounded, wide in zip(part.split(serial), exact.split(serial), strict=True):
                rounded.copy_(wide)
    return out.reshape(*raw.shape[:-1], raw.shape[-1] // size * weights)
