"""Which attention runs.

On a CPU, causal rows without a mask go through blocks of queries (fused.py), which keep no scores.
Short rows go through whole score matrices (reference.py): those are hardly larger than the rows,
and cheaper to keep than to compute again (8 rows of 33: 0.65 ms instead of 0.96). So do other rows
with small matrices: torch's own kernel multiplies tiny blocks, and its backward pass takes up to
eight times as long as two batched products over the whole square (rows of 32 tokens; even at 256).
A single query a row, where there are no gradients, takes three operations (single_query.py).
Everything else goes to torch. `packed` is given only where varlen.py suits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minift.kernels import choice
from minift.kernels.attention import fused, single_query, varlen
from minift.kernels.attention.packed import PackedSequences
from minift.kernels.attention.reference import attention

SHORT = 64  # positions
SQUARE = 256 * 256  # scores per head and row


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None = None,
    softcap: float | None = None,
    packed: PackedSequences | None = None,
) -> Tensor:
    """`reference.attention`, by the fastest form; torch's kernel has no softcap."""
    if packed is not None:
        return varlen.attention(q, k, v, packed, scale)
    if not choice.fused() or softcap is not None:
        return attention(q, k, v, mask, causal, scale, softcap)
    if q.device.type == "cpu":
        if causal and mask is None and q.shape[2] > SHORT:
            return fused.attention(q, k, v, scale)
        if q.shape[2] == 1 and q.dtype.itemsize >= 4 and not torch.is_grad_enabled():
            return single_query.attention(q, k, v, mask, scale)
        if q.shape[2] * k.shape[2] <= SQUARE:
            return attention(q, k, v, mask, causal, scale, softcap)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True
    )
