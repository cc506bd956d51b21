"""Cross-entropy from hidden states, in blocks of rows: the logits of all rows never exist at once.

    loss = Σ_n w_n (logsumexp_v(h_n · E_v) - h_n · E_target(n))          w = 1, or given

and for reinforcement learning each row's own log p(target) and entropy, at a temperature τ:

    p = softmax(h E^T / τ)        l = log p[target]        H = -Σ_v p_v log p_v

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


def linear_cross_entropy(
    hidden: Tensor, head: Head, targets: Tensor, rows: int = 512, weights: Tensor | None = None
) -> Tensor:
    """Sum of the negative log-probabilities: hidden (N, D), targets (N,) -> a float32+ scalar.

    weights (N,): what each row counts.
    """
    pairs = blocks(hidden, targets, rows)
    shares = [None] * len(pairs) if weights is None else weights.split(rows)
    each = [(h, head, t, w) for (h, t), w in zip(pairs, shares, strict=True)]
    if len(hidden) <= rows or not torch.is_grad_enabled():
        parts = [block_loss(*block) for block in each]
    else:
        parts = [checkpoint(block_loss, *block, use_reentrant=False) for block in each]
    return torch.stack(parts).sum()


def block_loss(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor | None) -> Tensor:
    logits = head(hidden)  # (N, V)
    wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    if weights is None:
        return F.cross_entropy(wide, targets, reduction="sum")
    return (F.cross_entropy(wide, targets, reduction="none") * weights).sum()


def blocks(hidden: Tensor, targets: Tensor, rows: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(hidden.split(rows), targets.split(rows), strict=True))


def token_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float = 1.0, rows: int = 512
) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy: hidden (N, D), targets (N,) -> float32+ (N,), (N,), nats."""
    if len(hidden) <= rows or not torch.is_grad_enabled():
        found = [block_logprobs(h, head, t, temperature) for h, t in blocks(hidden, targets, rows)]
    else:
        found = [
            checkpoint(block_logprobs, h, head, t, temperature, use_reentrant=False)
            for h, t in blocks(hidden, targets, rows)
        ]
    logp, entropy = zip(*found, strict=True)
    return torch.cat(logp), torch.cat(entropy)


def block_logprobs(
    hidden: Tensor, head: Head, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = head(hidden)  # (N, V)
    wide = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
    logp = (wide / temperature).log_softmax(-1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
