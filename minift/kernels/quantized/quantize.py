"""Float32 weights to blocks: Q8_0, Q4_0 and Q4_1, in the layouts that reference.py reads.

    Q8_0   d = max|w| / 127            q = w / d, to the nearest, halves away from zero
    Q4_0   d = w of largest |w| / -8   q = floor(w / d + 8.5), at most 15
    Q4_1   d = (max - min) / 15        q = floor((w - min) / d + 0.5), at most 15, and m = min

w / d is w times 1 / d, rounded twice in float32, and d is rounded to float16 only when it is
stored: the bits are those of the gguf package (and, for Q8_0, of ggml-quants.c). A block whose d is
too small for 1 / d to be finite has a d that float16 rounds to zero: its q are those of zeros.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from minift.kernels.quantized.reference import BLOCKS, CHUNK


def _inverse(d: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _half(x: np.ndarray) -> np.ndarray:
    """As the bytes of float16."""
    with np.errstate(over="ignore"):  # `quantize` finds what became infinite
        return x.astype("<f2").view(np.uint8)  # (blocks, 2)


def _packed(q: np.ndarray) -> np.ndarray:
    """Sixteen bytes of two: weight j low, weight j + 16 high."""
    q = np.minimum(q, 15).astype(np.uint8)
    return q[:, :16] | q[:, 16:] << np.uint8(4)


def _q8_0(w: np.ndarray) -> list[np.ndarray]:
    d = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
    x = w * _inverse(d)
    size = np.abs(x)
    whole = np.floor(size)
    q = np.copysign(whole + (size - whole >= 0.5), x)
    return [_half(d), q.astype(np.int8).view(np.uint8)]


def _q4_0(w: np.ndarray) -> list[np.ndarray]:
    largest = np.abs(w).argmax(axis=1)[:, None]
    d = np.take_along_axis(w, largest, axis=1) / np.float32(-8)
    return [_half(d), _packed(np.floor(w * _inverse(d) + np.float32(8.5)))]


def _q4_1(w: np.ndarray) -> list[np.ndarray]:
    least = w.min(axis=1, keepdims=True)
    d = (w.max(axis=1, keepdims=True) - least) / np.float32(15)
    q = np.floor((w - least) * _inverse(d) + np.float32(0.5))
    return [_half(d), _half(least), _packed(q)]


PACK: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
}


def quantize(kind: str, values: Tensor) -> Tensor:
    """The blocks of `values` (..., weights), finite: uint8 (..., bytes).

    Raises OverflowError where a scale is beyond float16.
    """
    weights, size = BLOCKS[kind]
    assert values.shape[-1] % weights == 0
    flat = values.detach().cpu().float().reshape(-1, weights).numpy()  # (blocks, weights)
    out = np.empty((len(flat), size), np.uint8)
    step = max(1, CHUNK // weights)
    for start in range(0, len(flat), step):
        parts = PACK[kind](flat[start : start + step])
        scales = np.concatenate(parts[:-1], axis=1)
        if not np.isfinite(scales.view("<f2")).all():
            raise OverflowError(f"a scale of {kind} beyond float16")
        out[start : start + step] = np.concatenate([scales, parts[-1]], axis=1)
    return torch.from_numpy(out).reshape(*values.shape[:-1], values.shape[-1] // weights * size)
