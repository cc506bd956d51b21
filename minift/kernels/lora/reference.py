"""LoRA's product, as the paper writes it: the readable twin of every faster form.

    y = x Wᵀ + b + s (D(x) Aᵀ) Bᵀ          W (out, in) frozen · A (R, in) · B (out, R) · s a number

Hu et al. 2021, arXiv:2106.09685, eq. 3. Backward, from g = dL/dy (autograd derives the same):

    u = s g B     dB = s gᵀ (D(x) Aᵀ)     dA = uᵀ D(x)     dx = g W + D'(u A)

B is turned before the product: autograd then finds u and dB as products with long contiguous rows,
two to three times as fast on a CPU as with B's own rows of R numbers.

A and B are kept in float32 (or better) whatever the dtype of the base; the low-rank product is
computed in theirs and rounded once to the base's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, drop: float
) -> Tensor:
    """x (..., in) -> (..., out). `drop` is the probability of dropping an input of the change."""
    return F.linear(x, weight, bias) + low_rank(x, A, B, scale, drop)  # (..., out)


def low_rank(x: Tensor, A: Tensor, B: Tensor, scale: float, drop: float) -> Tensor:
    """What the change adds, x (..., in) -> (..., out): all there is where W is not at hand."""
    s = F.linear(F.dropout(x, drop).to(A.dtype), A) * scale  # (..., R)
    return (s @ B.T.contiguous()).to(x.dtype)
