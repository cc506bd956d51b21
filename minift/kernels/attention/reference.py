"""Attention as the paper writes it: the readable twin of every faster form.

    y = softmax(cap(s q kᵀ)) v          s = 1 / sqrt(E), or given; a hidden score is -inf

Vaswani et al. 2017, arXiv:1706.03762, eq. 1, with grouped heads (Ainslie et al. 2023,
arXiv:2305.13245): the H / K query heads of one group read the same keys and values, so they stand
below each other as the rows of one product, and no key is ever copied.

cap(z) = c tanh(z / c) where a cap c is given (Gemma 2, arXiv:2408.00118, section 2).

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
    visible: Tensor | None,
    causal: bool,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """q (B, H, T, E), k and v (B, K, S, E) -> (B, H, T, E).

    visible (B or 1, 1, T, S): True where a query may look; each looks somewhere. With `causal` and
    no `visible`, T = S and a query looks at no later key.
    """
    B, H, T, E = q.shape
    K, S = k.shape[1], k.shape[2]
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = (q * (E**-0.5 if scale is None else scale)).to(wide).reshape(B, K, H // K * T, E)
    scores = (rows @ k.to(wide).transpose(2, 3)).view(B, H, T, S)
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    elif causal:
        later = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    weights = scores.softmax(-1).to(v.dtype)  # (B, H, T, S)
    return (weights.view(B, K, H // K * T, S) @ v).view(B, H, T, E)
