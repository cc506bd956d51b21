"""The elementwise functions of activations.py for Triton kernels, and what else Triton has not.

With σ the logistic function, Φ and φ the normal distribution and its density, k = sqrt(2 / pi) and
u = k (x + 0.044715 x³):

    silu       x σ(x)                σ(x) (1 + x (1 - σ(x)))
    gelu       x Φ(x)                Φ(x) + x φ(x)
    gelu_tanh  x (1 + tanh u) / 2    (1 + tanh u) / 2 + x (1 - tanh² u) k (1 + 3 · 0.044715 x²) / 2

Elfwing et al. 2018, arXiv:1702.03118; Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

OPTIONS = {"enable_fp_fusion": True}  # a b + c rounds once; said, for defaults differ by version


def wide(dtype: torch.dtype) -> tl.dtype:
    """What a kernel computes in: float32, or float64 where the tensor is."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def tanh(x):
    """Within a few units in the last place, near 0 too, where 1 - exp(-2 |x|) loses its digits."""
    size = tl.abs(x)
    e = tl.exp(-2 * size)
    far = (1 - e) / (1 + e)
    s = x * x
    series = -s * (1 / 3 - s * (2 / 15 - s * (17 / 315 - s * (62 / 2835 - s * (1382 / 155925)))))
    return tl.where(size < 0.1, x + x * series, tl.where(x < 0, -far, far))


@triton.jit
def activation(x, NAME: tl.constexpr):
    """f(x)"""
    if NAME == "silu":
        y = x / (1 + tl.exp(-x))
    elif NAME == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        y = 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    elif NAME == "relu":
        y = tl.where(x > 0, x, 0.0 * x)
    else:
        tl.static_assert(NAME == "tanh")
        y = tanh(x)
    return y


@triton.jit
def slope(x, NAME: tl.constexpr):
    """f'(x)"""
    if NAME == "silu":
        s = 1 / (1 + tl.exp(-x))
        d = s * (1 + x * (1 - s))
    elif NAME == "gelu":
        density = 0.3989422804014327 * tl.exp(-0.5 * x * x)
        d = 0.5 * (1 + tl.erf(x * 0.7071067811865476)) + x * density
    elif NAME == "gelu_tanh":
        t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
        inner = 0.7978845608028654 * (1 + 0.134145 * x * x)
        d = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * inner
    elif NAME == "relu":
        d = tl.where(x > 0, 1.0 + 0.0 * x, 0.0 * x)
    else:
        tl.static_assert(NAME == "tanh")
        t = tanh(x)
        d = 1 - t * t
    return d
