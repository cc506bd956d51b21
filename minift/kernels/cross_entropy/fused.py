"""Cross-entropy from hidden states and a frozen head: two products a block, nothing kept but dh.

    z = h Eᵀ + b (capped: c tanh(z / c))        loss = Σ_n  lse(z_n) - z_n[target]

The loss is a sum, so its gradient is known as soon as it is: while a block's logits are at hand
they become softmax(z) - onehot in place, and dh = (softmax - onehot) E at once (Hsu et al. 2024,
arXiv:2410.10989, section 3.2). The backward pass only multiplies dh by what reaches the loss.

A capped logit passes on 1 - (z / c)² of its gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ROWS, LOGITS = 512, 25_000_000  # the most of a block: fewer would read the head too often


def block(
    h: Tensor, head: nn.Linear, targets: Tensor, cap: float | None, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """(Σ of the losses, dh) of some rows."""
    z = F.linear(h, head.weight, head.bias)
    wide = torch.promote_types(z.dtype, torch.float32)
    z = z.to(wide)  # (n, V)
    bent = torch.tanh(z.div_(cap)) if cap is not None else None
    if bent is not None and cap is not None:
        z = bent * cap
    most = z.amax(-1)  # (n,)
    hit = z.gather(1, targets[:, None])[:, 0]
    P = torch.softmax(z, dim=-1, out=z)
    # The largest probability is 1 / Σ exp(z - most): no second pass for the sum.
    loss = (most - P.amax(-1).log() - hit).sum()
    if not learns:
        return loss, None
    P.scatter_add_(1, targets[:, None], P.new_full((len(P), 1), -1.0))
    if bent is not None:
        P.mul_(bent.square_().neg_().add_(1))
    return loss, P.to(h.dtype) @ head.weight


class LinearCrossEntropy(torch.autograd.Function):
    """hidden (N, D), targets (N,) -> the sum of the losses."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: nn.Linear, targets: Tensor, cap: float | None
    ) -> Tensor:
        learns = ctx.needs_input_grad[0]
        dh = torch.empty_like(hidden) if learns else None
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        rows = max(1, min(ROWS, LOGITS // head.out_features))
        for first in range(0, len(hidden), rows):
            part = slice(first, first + rows)
            loss, found = block(hidden[part], head, targets[part], cap, learns)
            total += loss
            if dh is not None and found is not None:
                dh[part] = found
        ctx.save_for_backward(dh)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (dh,) = ctx.saved_tensors
        return None if dh is None else (dh * g).to(dh.dtype), None, None, None


def linear_cross_entropy(
    hidden: Tensor, head: nn.Linear, targets: Tensor, cap: float | None = None
) -> Tensor:
    """Sum of the negative log-probabilities: hidden (N, D), targets (N,) -> a float32+ scalar."""
    total: Tensor = LinearCrossEntropy.apply(hidden, head, targets, cap)
    return total
