"""Which attention runs: whole score matrices where they are small, torch's fused kernel elsewhere.

On a CPU torch's kernel multiplies tiny blocks, and its backward pass takes up to eight times as
long as two batched products over the whole square (rows of 32 tokens; even at 256). Beyond that the
square itself costs more, in time and in memory.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from minift.kernels.attention.reference import attention

SQUARE = 256 * 256  # scores a head and row


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    causal: bool,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """`reference.attention`, by the faster of two ways; torch's kernel knows no cap."""
    small = q.device.type == "cpu" and q.shape[2] * k.shape[2] <= SQUARE
    if small or cap is not None:
        return attention(q, k, v, visible, causal, scale, cap)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=visible, is_causal=causal, scale=scale, enable_gqa=True
    )
