"""Cross-entropy from hidden states and a frozen head: two products a block, nothing kept but dh.

    z = h Eᵀ + b (capped: c tanh(z / c))        loss = Σ_n w_n (lse(z_n) - z_n[target])

The loss is a sum, so its gradient is known as soon as it is: while a block's logits are at hand
they become softmax(z) - onehot in place, and dh = (softmax - onehot) E at once (Hsu et al. 2024,
arXiv:2410.10989, section 3.2). The backward pass only multiplies dh by what reaches the loss, and
each row by its weight w_n: 1, or given, and 0 takes a row out without a change of any shape. The
products take many rows at a time, what lies between them few, so that it stays in the cache.

A capped logit passes on 1 - (z / c)² of its gradient.

For reinforcement learning, log-probability and entropy of every row, with a gradient for each:

    z = h Eᵀ + b (capped) over the temperature τ      p = softmax(z) = exp(z - lse)
    l = z[target] - lse                               H = -Σ_v p log p

What reaches l and H (a and e, a number a row) is not known when they are, so the backward pass
makes each block's logits again, from h and the saved lse and H: three products in all.

    dl/dz = onehot - p            dH/dz = p - p - p (z - Σ_u p_u z_u) = -p (log p + H)
    dz = (a onehot - p (a + e (log p + H))) / τ                        dh = dz E
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

ROWS, LOGITS = 512, 25_000_000  # the most of a block: fewer would read the head too often
NEAR = 1_000_000  # logits of a piece on a CPU: in float32 they stay in its cache


def parts(count: int, width: int, rows: int, most: int) -> Iterator[slice]:
    """Of `count` rows of so many logits: at most `rows`, and `most` logits, at a time."""
    step = max(1, min(rows, most // width))
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))


def blocks(hidden: Tensor, head: nn.Linear) -> Iterator[slice]:
    """The rows of each product."""
    yield from parts(len(hidden), head.out_features, ROWS, LOGITS)


def pieces(whole: Tensor, first: int = 0) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """A product's rows again, few at a time: which they are, counted from `first`; their logits.

    The logits in float32 or better, and as they stand in `whole`: one tensor where it is that.
    """
    wide, (count, width) = torch.promote_types(whole.dtype, torch.float32), whole.shape
    near = NEAR if whole.device.type == "cpu" else whole.numel()
    for part in parts(count, width, count, near):
        place = whole[part]
        yield slice(first + part.start, first + part.stop), place.to(wide), place


def put(found: Tensor, place: Tensor) -> None:
    """What became of a piece goes back where it came from, unless it never left."""
    if found.data_ptr() != place.data_ptr():
        place.copy_(found)


def bend(z: Tensor, cap: float | None, temperature: float = 1.0) -> tuple[Tensor, Tensor | None]:
    """z (n, V), capped and over the temperature; with a cap tanh(z / cap) as well. z is spent."""
    bent = None
    if cap is not None:
        bent = torch.tanh(z.div_(cap))
        z = bent * cap
    return z if temperature == 1 else z.div_(temperature), bent


def block(
    h: Tensor, head: nn.Linear, targets: Tensor, cap: float | None, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """Each row's loss (n,), and dh, of some rows; neither is weighted."""
    whole = F.linear(h, head.weight, head.bias)  # (n, V), which becomes softmax - onehot
    losses = []
    for rows, logits, place in pieces(whole):
        z, bent = bend(logits, cap)
        target = targets[rows, None]
        most, hit = z.amax(-1), z.gather(1, target)[:, 0]  # (rows,)
        P = torch.softmax(z, dim=-1, out=z)
        # The largest probability is 1 / Σ exp(z - most): no second pass for the sum.
        losses.append(most - P.amax(-1).log() - hit)
        if not learns:
            continue
        P.scatter_add_(1, target, P.new_full((len(P), 1), -1.0))
        if bent is not None:
            P.mul_(bent.square_().neg_().add_(1))
        put(P, place)
    return torch.cat(losses), whole @ head.weight if learns else None


class LinearCrossEntropy(torch.autograd.Function):
    """hidden (N, D), targets (N,), weights (N,) or None -> the sum of the losses.

    `cut` and `block` as `blocks` and `block` here, which another form has of its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: nn.Linear,
        targets: Tensor,
        cap: float | None,
        weights: Tensor | None,
        cut: Callable[[Tensor, nn.Linear], Iterator[slice]],
        block: Callable[..., tuple[Tensor, Tensor | None]],
    ) -> Tensor:
        learns = ctx.needs_input_grad[0]
        dh = torch.empty_like(hidden) if learns else None
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for part in cut(hidden, head):
            losses, found = block(hidden[part], head, targets[part], cap, learns)
            total += losses.sum() if weights is None else (losses * weights[part]).sum()
            if dh is not None and found is not None:
                dh[part] = found
        ctx.save_for_backward(dh, weights)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dh, weights = ctx.saved_tensors
        if dh is not None:
            dh = (dh * (g if weights is None else (g * weights)[:, None])).to(dh.dtype)
        return dh, None, None, None, None, None, None


def linear_cross_entropy(
    hidden: Tensor,
    head: nn.Linear,
    targets: Tensor,
    cap: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum of the negative log-probabilities: hidden (N, D), targets (N,) -> a float32+ scalar."""
    total: Tensor = LinearCrossEntropy.apply(hidden, head, targets, cap, weights, blocks, block)
    return total


class TokenLogprobs(torch.autograd.Function):
    """hidden (N, D), targets (N,) -> log-probabilities and entropies (N,)."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: nn.Linear,
        targets: Tensor,
        cap: float | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logp, entropy, lse = (hidden.new_empty(len(hidden), dtype=wide) for _ in range(3))
        for at in blocks(hidden, head):
            whole = F.linear(hidden[at], head.weight, head.bias)  # (n, V)
            for rows, logits, _ in pieces(whole, at.start):
                z, _ = bend(logits, cap, temperature)
                most = z.amax(-1, keepdim=True)  # (rows, 1)
                z.sub_(most)
                P = z.exp()
                total = P.sum(-1)
                logs = total.log()
                logp[rows] = z.gather(1, targets[rows, None])[:, 0] - logs
                # z is 0 or less here: nothing cancels, however large the logits were.
                entropy[rows] = logs - z.mul_(P).sum(-1) / total
                lse[rows] = most[:, 0] + logs
        ctx.head, ctx.cap, ctx.temperature = head, cap, temperature
        ctx.save_for_backward(hidden, targets, lse, entropy)
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, a: Tensor | None, e: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, targets, lse, entropy = ctx.saved_tensors
        head, cap, temperature = ctx.head, ctx.cap, ctx.temperature
        # (N, 1); an objective without an entropy saves the passes for it.
        logps = torch.zeros_like(lse)[:, None] if a is None else a[:, None] / temperature
        entropies = None if e is None else e[:, None] / temperature
        dh = torch.empty_like(hidden)
        for at in blocks(hidden, head):
            whole = F.linear(hidden[at], head.weight, head.bias)  # (n, V), which becomes dz
            for rows, logits, place in pieces(whole, at.start):
                z, bent = bend(logits, cap, temperature)
                z.sub_(lse[rows, None])  # log p
                if entropies is None:
                    dz = z.exp_().mul_(-logps[rows])
                else:
                    P = z.exp()
                    weight = logps[rows] + entropies[rows] * entropy[rows, None]
                    dz = z.mul_(-entropies[rows]).sub_(weight).mul_(P)
                dz.scatter_add_(1, targets[rows, None], logps[rows])
                if bent is not None:
                    dz.mul_(bent.square_().neg_().add_(1))
                put(dz, place)
            dh[at] = whole @ head.weight
        return dh, None, None, None, None


def token_logprobs(
    hidden: Tensor,
    head: nn.Linear,
    targets: Tensor,
    cap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy: hidden (N, D), targets (N,) -> float32+ (N,), (N,), nats."""
    logp, entropy = TokenLogprobs.apply(hidden, head, targets, cap, temperature)
    return logp, entropy
