"""Causal attention in blocks of queries, which keeps q, k and v, no scores.

A block of queries meets only the keys up to its own end, so of the square of scores little more
than the lower half is ever computed:

    P = softmax(s q_b k_{..b}ᵀ)        y_b = P v_{..b}

Backward, with g = dL/dy, P made again, and d = rowsum(P * g vᵀ):

    dv += Pᵀ g        dS = P * (g vᵀ - d)        dq_b = s dS k        dk += s dSᵀ q_b

(Dao et al. 2022, arXiv:2205.14135, appendix B.2, whose tiles suit an accelerator's small fast
memory; here a block is as wide as its keys: few large products are what a CPU's library does best.)

Scores are float32 (or better) whatever the dtype of q, as in the readable twin.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 128  # queries a block


def blocks(T: int) -> Iterator[tuple[int, int]]:
    """Where each block begins and ends."""
    for begin in range(0, T, ROWS):
        yield begin, min(begin + ROWS, T)


def stacked(x: Tensor, K: int, begin: int, end: int) -> Tensor:
    """Queries of a block (B, H, T, E) -> (B K, H/K * rows, E): a group's heads below each other."""
    B, H, _, E = x.shape
    return x[:, :, begin:end].reshape(B * K, H // K * (end - begin), E)


def weights(q: Tensor, k: Tensor, later: Tensor) -> Tensor:
    """(B K, H/K, rows, keys) of a block's queries over the keys up to its end.

    `later` (rows, rows) is -inf where a key comes after its query, else 0.
    """
    rows = later.shape[0]
    S = torch.bmm(q, k.transpose(1, 2)).view(q.shape[0], -1, rows, k.shape[1])
    S[..., -rows:].add_(later)
    return torch.softmax(S, dim=-1, out=S)


def triangle(q: Tensor) -> Tensor:
    return torch.full((ROWS, ROWS), float("-inf"), device=q.device).triu(1)


class Causal(torch.autograd.Function):
    """q (B, H, T, E), k and v (B, K, T, E) -> (B, H, T, E)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        (B, H, T, E), K = q.shape, k.shape[1]
        wide = torch.promote_types(q.dtype, torch.float32)
        keys = k.to(wide).reshape(B * K, T, E)
        values = v.reshape(B * K, T, E)
        later = triangle(q)
        y = torch.empty(B, T, H, E, dtype=v.dtype, device=q.device).transpose(1, 2)
        for begin, end in blocks(T):
            rows = end - begin
            queries = stacked(q, K, begin, end).to(wide) * scale
            P = weights(queries, keys[:, :end], later[:rows, :rows]).to(v.dtype)
            part = torch.bmm(P.view(B * K, -1, end), values[:, :end])
            y[:, :, begin:end] = part.view(B, H, rows, E)
        ctx.scale = scale
        ctx.save_for_backward(q, k, v)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        (B, H, T, E), K = q.shape, k.shape[1]
        wide, scale = torch.promote_types(q.dtype, torch.float32), ctx.scale
        keys, values = k.to(wide).reshape(B * K, T, E), v.reshape(B * K, T, E)
        later = triangle(q)
        dq = torch.empty(B, T, H, E, dtype=q.dtype, device=q.device).transpose(1, 2)
        dk = torch.zeros(B * K, T, E, dtype=wide, device=q.device)
        dv = torch.zeros(B * K, T, E, dtype=wide, device=q.device)
        for begin, end in blocks(T):
            rows = end - begin
            queries = stacked(q, K, begin, end).to(wide) * scale
            P = weights(queries, keys[:, :end], later[:rows, :rows])
            down = stacked(g, K, begin, end)
            dv[:, :end] += torch.bmm(P.to(v.dtype).view(B * K, -1, end).transpose(1, 2), down)
            dP = torch.bmm(down, values[:, :end].transpose(1, 2)).to(wide).view(P.shape)
            dS = torch.ops.aten._softmax_backward_data(dP, P, -1, wide)
            flat = dS.view(B * K, -1, end)
            part = torch.bmm(flat, keys[:, :end]).mul_(scale)
            dq[:, :, begin:end] = part.view(B, H, rows, E)
            dk[:, :end].baddbmm_(flat.transpose(1, 2), queries)
        return (
            dq,
            dk.view(B, K, T, E).to(k.dtype),
            dv.view(B, K, T, E).to(v.dtype),
            None,
        )


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """q (B, H, T, E), k and v (B, K, T, E) -> (B, H, T, E): a query looks at no later key."""
    y: Tensor = Causal.apply(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
    return y
