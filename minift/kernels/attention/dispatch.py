"""Which attention runs.

On a CPU, causal rows without a mask go through blocks of queries (fused.py), which keep no scores.
Short ones go through whole score matrices (reference.py): those are hardly larger than the rows,
and kept sooner than made again (8 rows of 33: 0.65 ms instead of 0.96). So do other rows where the
matrices are small: torch's own kernel multiplies tiny blocks, and its backward pass takes up to
eight times as long as two batched products over the whole square (rows of 32 tokens; even at 256).
A single query a row, where there are no gradients, is three operations (single.py). Everything else
is torch's. Rows of fixed shape say so by their `texts`, given only where varlen.py suits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minift.kernels import choice
from minift.kernels.attention import fused, single, varlen
from minift.kernels.attention.reference import attention

SHORT = 64  # positions
SQUARE = 256 * 256  # scores a head and row


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    causal: bool,
    scale: float | None = None,
    cap: float | None = None,
    texts: varlen.Texts | None = None,
) -> Tensor:
    """`reference.attention`, by the fastest way; torch's kernel knows no cap."""
    if texts is not None:
        return varlen.attention(q, k, v, texts, scale)
    if not choice.fused() or cap is not None:
        return attention(q, k, v, visible, causal, scale, cap)
    if q.device.type == "cpu":
        if causal and visible is None and q.shape[2] > SHORT:
            return fused.attention(q, k, v, scale)
        if q.shape[2] == 1 and q.dtype.itemsize >= 4 and not torch.is_grad_enabled():
            return single.attention(q, k, v, visible, scale)
        if q.shape[2] * k.shape[2] <= SQUARE:
            return attention(q, k, v, visible, causal, scale, cap)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=causal, scale=scale, enable_gqa=True
    )
