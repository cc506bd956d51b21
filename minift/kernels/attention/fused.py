"""Causal attention in blocks of queries, which keeps q, k and v, no scores.

A block of queries needs only the keys up to its own end, so little more than the lower half of the
score matrix is ever computed:

    P = softmax(q_b (s k_{..b})ᵀ)        y_b = P v_{..b}

Backward, with g = dL/dy, P computed again, and d = rowsum(P * g vᵀ):

    dv += Pᵀ g        dS = P * (g vᵀ - d)        dq_b = dS (s k)        dk += s dSᵀ q_b

(Dao et al. 2022, arXiv:2205.14135, appendix B.2, whose tiles suit an accelerator's small fast
memory; here a block is as wide as its keys: few large products are what a CPU's library does best.)

The heads of a group are adjacent at every position; batch rows and groups are the batch of the
products. A block takes as much of that batch at a time as keeps its scores in the CPU's cache, and
all scores are written to the same memory: scores that leave the cache cost more than their softmax.

Scores are float32 (or better) whatever the dtype of q, as in the readable twin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 64  # queries per block, about; twice as many, so that products are large enough, where
LONG, MANY = 1024, 32  # there are more keys than LONG or fewer rows x heads than MANY
SCORES = 2**20  # at a time: 4 MB in float32, and as many gradients in the backward pass


@dataclass(frozen=True)
class Block:
    """Queries begin..end of every row and group; the heads of a position are adjacent."""

    begin: int
    end: int
    keys: Tensor  # (B K, end, E), times the scale
    values: Tensor  # (B K, end, E)
    later: Tensor  # (rows H/K, rows): -inf where a key comes after its query, else 0
    space: Tensor  # memory for scores, shared by all blocks

    def gather(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy of these queries of x (B, H, T, E), as (B K, rows H/K, E)."""
        view = self._view(x)
        copy = torch.empty(view.shape, dtype=dtype, device=x.device).copy_(view)
        return copy.flatten(2, 3).flatten(0, 1)

    def scatter(self, part: Tensor, y: Tensor) -> None:
        """Write `part`, in the layout of `gather`, to its place in y (B, H, T, E)."""
        view = self._view(y)
        view.copy_(part.view(view.shape))

    def _view(self, x: Tensor) -> Tensor:
        B, H, T, E = x.shape
        K = len(self.keys) // B
        return x.view(B, K, H // K, T, E)[:, :, :, self.begin : self.end].transpose(2, 3)

    def parts(self) -> list[slice]:
        """Rows and groups in about equal parts whose scores fit into the cache."""
        batch, scores = len(self.keys), len(self.later) * self.end
        count = -(-batch // max(1, SCORES // scores))
        step = -(-batch // count)
        return [slice(first, first + step) for first in range(0, batch, step)]

    def weights(self, queries: Tensor, some: slice) -> Tensor:
        """Softmax weights (n, rows H/K, end) of these rows and groups, until the next call."""
        keys = self.keys[some]
        S = self.space[: len(keys) * len(self.later) * self.end].view(len(keys), -1, self.end)
        torch.bmm(queries[some], keys.transpose(1, 2), out=S)
        S[..., self.begin :].add_(self.later)
        return torch.softmax(S, dim=-1, out=S)


def blocks(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Iterator[Block]:
    """All queries, block by block."""
    (B, H, T, E), K = q.shape, k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    rows = ROWS if B * H >= MANY and T <= LONG else 2 * ROWS
    rows = -(-T // max(1, round(T / rows)))  # blocks of about equal length
    keys, values = (k.to(wide) * scale).reshape(B * K, T, E), v.reshape(B * K, T, E)
    later = torch.full((rows, rows), float("-inf"), dtype=wide, device=q.device).triu(1)
    later = later.repeat_interleave(H // K, dim=0)
    space = torch.empty(max(SCORES, H // K * rows * T), dtype=wide, device=q.device)
    for begin in range(0, T, rows):
        end = min(begin + rows, T)
        yield Block(
            begin,
            end,
            keys[:, :end].contiguous(),
            values[:, :end].contiguous(),
            later[: H // K * (end - begin), : end - begin],
            space,
        )


class Causal(torch.autograd.Function):
    """q (B, H, T, E), k and v (B, K, T, E) -> (B, H, T, E)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        B, H, T, E = q.shape
        y = torch.empty(B, T, H, E, dtype=v.dtype, device=q.device).transpose(1, 2)
        for block in blocks(q, k, v, scale):
            queries = block.gather(q, block.keys.dtype)
            part = torch.empty(queries.shape, dtype=v.dtype, device=q.device)
            for some in block.parts():
                P = block.weights(queries, some)
                torch.bmm(P.to(v.dtype), block.values[some], out=part[some])
            block.scatter(part, y)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        (B, H, T, E), K = q.shape, k.shape[1]
        wide = torch.promote_types(q.dtype, torch.float32)
        dq = torch.empty(B, T, H, E, dtype=q.dtype, device=q.device).transpose(1, 2)
        dk, dv = torch.zeros(2, B * K, T, E, dtype=wide, device=q.device)
        for block in blocks(q, k, v, ctx.scale):
            queries, down = block.gather(q, wide), block.gather(g, v.dtype)
            part = torch.empty_like(queries)
            for some in block.parts():
                P = block.weights(queries, some)
                dv[some, : block.end] += torch.bmm(P.to(v.dtype).transpose(1, 2), down[some])
                dP = torch.bmm(down[some], block.values[some].transpose(1, 2)).to(wide)
                # Overwrites P: each row is read before it is written.
                dS = torch.ops.aten._softmax_backward_data.out(dP, P, -1, wide, grad_input=P)
                torch.bmm(dS, block.keys[some], out=part[some])
                dk[some, : block.end] += torch.bmm(dS.transpose(1, 2), queries[some])
            block.scatter(part, dq)
        dk.mul_(ctx.scale)
        return dq, dk.view(k.shape).to(k.dtype), dv.view(v.shape).to(v.dtype), None


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """q (B, H, T, E), k and v (B, K, T, E) -> (B, H, T, E): a query attends to no later key."""
    y: Tensor = Causal.apply(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
    return y
