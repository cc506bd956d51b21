"""Attention as the paper writes it: the readable twin of every faster form.

    y = softmax(cap(s q kᵀ)) v          s = 1 / sqrt(E), or given; a masked score is -inf

Vaswani et al. 2017, arXiv:1706.03762, eq. 1, with grouped heads (Ainslie et al. 2023,
arXiv:2305.13245): the H / K query heads of one group read the same keys and values, so they are
the rows of one product, and no key is ever copied.

cap(z) = c tanh(z / c) where a softcap c is given (Gemma 2, arXiv:2408.00118, section 2).

Scores and softmax are float32 (or better) whatever the dtype of q; the weights are rounded once,
to the dtype of v.
"""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    causal: bool,
    scale: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """q (B, H, T, E), k and v (B, K, S, E) -> (B, H, T, E).

    mask (B or 1, 1, T, S): True where a query may attend; no query's row is all False. With
    `causal` and no mask, T = S and a query attends to no later key.
    """
    B, H, T, E = q.shape
    K, S = k.shape[1], k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = (q * (E**-0.5 if scale is None else scale)).to(wide).reshape(B, K, H // K * T, E)
    scores = (rows @ k.to(wide).transpose(2, 3)).view(B, H, T, S)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif causal:
        later = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    weights = scores.softmax(-1).to(v.dtype)  # (B, H, T, S)
    return (weights.view(B, K, H // K * T, S) @ v).view(B, H, T, E)
