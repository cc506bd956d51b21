"""Turning the heads of queries and keys in one kernel, for a GPU.

    (x_i, x_{i+E/2}) -> (x_i cos a_i - x_{i+E/2} sin a_i, x_{i+E/2} cos a_i + x_i sin a_i)

Su et al. 2021, arXiv:2104.09864, eq. 34, in the half-split layout. A program turns every head of
one position, of q or of k, so its angles are read once; x may lie in any strides. The backward pass
turns the other way, by -a, and keeps nothing of x.

The result is new memory: q and k are views of what a projection group gave, which autograd allows
nobody to write over, and what reaches the backward pass may be someone else's too. Turning in place
would save memory that lives for one attention only, and no traffic.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from minift.kernels.activations_triton import OPTIONS, wide


@triton.jit
def turn(
    x, y, cos, sin, b, t, row, xb, xh, xt, xe, H,
    HALF: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,
    REST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """All heads (H, E) of position t of row b; y is contiguous as (B, T, H, E)."""
    head, i = tl.arange(0, HEADS)[:, None], tl.arange(0, WIDTH)[None, :]
    inside = (head < H) & (i < HALF)
    start = x + b * xb + t * xt + head * xh
    first = tl.load(start + i * xe, mask=inside, other=0.0).to(WIDE)
    second = tl.load(start + (i + HALF) * xe, mask=inside, other=0.0).to(WIDE)
    out = y + (row * H + head) * E
    one, two = first * cos - second * sin, second * cos + first * sin
    tl.store(out + i, one.to(y.dtype.element_ty), mask=inside)
    tl.store(out + i + HALF, two.to(y.dtype.element_ty), mask=inside)
    if 2 * HALF < E:  # channels that stay
        j = 2 * HALF + tl.arange(0, REST)[None, :]
        there = (head < H) & (j < E)
        tl.store(out + j, tl.load(start + j * xe, mask=there, other=0.0), mask=there)


@triton.jit
def turn_kernel(
    q, k, q_out, k_out, cos, sin, T, H, K,
    qb, qh, qt, qe, kb, kh, kt, ke, ab, at, ae,
    WAY: tl.constexpr, HALF: tl.constexpr, E: tl.constexpr, Q_HEADS: tl.constexpr,
    K_HEADS: tl.constexpr, WIDTH: tl.constexpr, REST: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    b, t = row // T, row % T
    i = tl.arange(0, WIDTH)[None, :]
    angle = b * ab + t * at + i * ae
    c = tl.load(cos + angle, mask=i < HALF, other=0.0).to(WIDE)
    s = tl.load(sin + angle, mask=i < HALF, other=0.0).to(WIDE) * WAY
    if tl.program_id(1) == 0:
        turn(q, q_out, c, s, b, t, row, qb, qh, qt, qe, H, HALF, E, Q_HEADS, WIDTH, REST, WIDE)
    else:
        turn(k, k_out, c, s, b, t, row, kb, kh, kt, ke, K, HALF, E, K_HEADS, WIDTH, REST, WIDE)


def turned(heads: tuple[Tensor, ...], cos: Tensor, sin: Tensor, way: int) -> tuple[Tensor, ...]:
    """One tensor (B, H, T, E) or two, turned: heads beside each other, as projections give them."""
    q, k = heads[0], heads[-1]
    (B, H, T, E), K, half = q.shape, k.shape[1], cos.shape[-1]
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    # Turned by shape, not by stride: a table of one row serves every row.
    at = [0 if size == 1 else step for size, step in zip(cos.shape, cos.stride(), strict=True)]
    outs = [x.new_empty(B, T, x.shape[1], E).transpose(1, 2) for x in heads]
    if B * T:
        power = triton.next_power_of_2
        turn_kernel[(B * T, len(heads))](
            q, k, outs[0], outs[-1], cos, sin, T, H, K,
            *q.stride(), *k.stride(), at[0], at[2], at[3],
            way, half, E, power(H), power(K), power(half), power(max(1, E - 2 * half)),
            wide(q.dtype), **OPTIONS,
        )  # fmt: skip
    return tuple(outs)


class Rotate(torch.autograd.Function):
    """cos and sin (B or 1, 1, T, E/2), one or two tensors (B, H, T, E) -> the same, turned."""

    @staticmethod
    def forward(ctx: Any, cos: Tensor, sin: Tensor, *heads: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        return turned(heads, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return None, None, *turned(gs, cos, sin, -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first channels of x (B, H, T, E) by angles (B, 1, T, E/2); the rest stay."""
    (y,) = Rotate.apply(cos, sin, x)
    return y


def rotate_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q (B, H, T, E) and k (B, K, T, E) by the same angles, in one kernel."""
    turned_q, turned_k = Rotate.apply(cos, sin, q, k)
    return turned_q, turned_k
