"""Cross-entropy from hidden states, in blocks of rows: the logits of all rows never exist at once.

    loss = Σ_n  logsumexp_v(h_n · E_v) - h_n · E_target(n)

Only rows with a target are handed in, so a prompt costs nothing here. Above `rows` rows each block
is recomputed in the backward pass: one block of logits (rows x V) is the peak, for one more head
product.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]  # hidden states (N, D) -> logits (N, V)


def linear_cross_entropy(hidden: Tensor, head: Head, targets: Tensor, rows: int = 512) -> Tensor:
    """Sum of the negative log-probabilities: hidden (N, D), targets (N,) -> a float32+ scalar."""
    if len(hidden) <= rows or not torch.is_grad_enabled():
        parts = [block_loss(h, head, t) for h, t in blocks(hidden, targets, rows)]
    else:
        parts = [
            checkpoint(block_loss, h, head, t, use_reentrant=False)
            for h, t in blocks(hidden, targets, rows)
        ]
    return torch.stack(parts).sum()


def block_loss(hidden: Tensor, head: Head, targets: Tensor) -> Tensor:
    logits = head(hidden)  # (N, V)
    wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    return F.cross_entropy(wide, targets, reduction="sum")


def blocks(hidden: Tensor, targets: Tensor, rows: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(hidden.split(rows), targets.split(rows), strict=True))
