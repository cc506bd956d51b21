"""A group of linears with low-rank changes, for a GPU: the thin products each in one reading.

    t_j = s_j D(x) A_jᵀ        y_j = x W_jᵀ + b_j + t_j B_jᵀ
    u_j = s_j g_j B_j      dB_j = g_jᵀ t_j      dA = uᵀ D(x)      dx = Σ_j g_j W_j + D'(u A)

The algebra and what is kept are those of fused.py (Hu et al. 2021, arXiv:2106.09685, eq. 3). The
products with a W, and those that add t Bᵀ and u A to them, are the GPU's own library's. A thin
product does little with every number that it reads, so what it costs is the reading:

    u_j and dB_j    both in one reading of g_j (Zhu et al. 2025, arXiv:2510.00206)
    dA              of the whole group in one reading of x
    D               decided where x is read: a number is kept or not by a hash of the seed and its
                    place (Salmon et al. 2011, the Philox generator), so no mask is ever written

dA and dB add up in float32, whatever the dtype of the base. Work is cut in as many parts as fill a
GPU; parts are added in a fixed order, without atomics, so that the same step gives the same bits.

The seed is a tensor on the device: nothing waits for it. A CUDA graph draws it by torch's generator
there, a new one at every replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from minift.kernels.activations_triton import OPTIONS, wide
from minift.kernels.dropout import seed_on
from minift.kernels.lora import fused
from minift.kernels.lora.fused import Plan, Products, scaled, stacked
from minift.kernels.lora.reference import Adapted

ROWS = 32  # of x or g in a tile
NUMBERS, WIDEST = 4096, 256  # of a sum that a program keeps, and its columns at most
PROGRAMS = 256  # about as many as fill a large GPU


@triton.jit
def seen(x, place, inside, seed, DROP: tl.constexpr):
    """D(x) without its factor: a tile of x, each number kept by its place in the whole of x."""
    tile = tl.load(x, mask=inside, other=0.0)
    if DROP != 0:
        kept = tl.rand(tl.load(seed), place) >= DROP
        tile = tl.where(kept, tile, tl.zeros_like(tile))
    return tile


@triton.jit
def low_kernel(
    x, A, t, seed, N, inputs, R, row_step, column_step, DROP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """t = D(x) Aᵀ: x (N, inputs), A (R, inputs), t (N, R)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    rank, at = tl.arange(0, RANKS), tl.arange(0, COLUMNS)
    total = tl.zeros([ROWS, RANKS], WIDE)
    for first in range(0, inputs, COLUMNS):
        column = first + at
        inside = (row < N)[:, None] & (column < inputs)[None, :]
        where = x + row[:, None] * row_step + column[None, :].to(tl.int64) * column_step
        tile = seen(where, row[:, None] * inputs + column[None, :], inside, seed, DROP)
        part = (rank < R)[None, :] & (column < inputs)[:, None]
        a = tl.load(A + rank[None, :] * inputs + column[:, None], mask=part, other=0.0)
        total += tl.dot(tile, a.to(tile.dtype), input_precision="ieee", out_dtype=WIDE)
    inside = (row < N)[:, None] & (rank < R)[None, :]
    tl.store(t + row[:, None] * R + rank[None, :], total.to(t.dtype.element_ty), mask=inside)


@triton.jit
def narrow_kernel(
    g, B, t, us, dBs, N, outs, R, g_row, g_column, t_row, each,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Parts of u = g B and dB = gᵀ t in one reading of g (N, outs): B (outs, R), t (N, R).

    A program has COLUMNS columns of g and `each` rows: us (columns / COLUMNS, N, R) is a part for
    every program of a row, dBs (rows / each, outs, R) for every program of a column.
    """
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANKS)
    narrow = (column < outs)[:, None] & (rank < R)[None, :]
    b = tl.load(B + column[:, None] * R + rank[None, :], mask=narrow, other=0.0)
    b = b.to(g.dtype.element_ty)
    total = tl.zeros([COLUMNS, RANKS], WIDE)
    begin = tl.program_id(1).to(tl.int64) * each
    part = tl.program_id(0).to(tl.int64) * N
    for first in range(0, each, ROWS):
        row = begin + first + tl.arange(0, ROWS)
        live = row < N  # `each` is a multiple of ROWS
        inside = live[:, None] & (column < outs)[None, :]
        where = g + row[:, None] * g_row + column[None, :] * g_column
        tile = tl.load(where, mask=inside, other=0.0)
        thin = live[:, None] & (rank < R)[None, :]
        u = tl.dot(tile, b, input_precision="ieee", out_dtype=WIDE)
        tl.store(us + (part + row[:, None]) * R + rank[None, :], u, mask=thin)
        lows = tl.load(t + row[:, None] * t_row + rank[None, :], mask=thin, other=0.0)
        total += tl.dot(tl.trans(tile), lows, input_precision="ieee", out_dtype=WIDE)
    place = tl.program_id(1).to(tl.int64) * outs + column[:, None]
    tl.store(dBs + place * R + rank[None, :], total, mask=narrow)


@triton.jit
def across_kernel(
    x, u, dAs, seed, N, inputs, R, row_step, column_step, each, DROP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Parts of dA = uᵀ D(x): u (N, R), x (N, inputs), dAs (rows / each, R, inputs)."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANKS)
    total = tl.zeros([RANKS, COLUMNS], WIDE)
    begin = tl.program_id(1).to(tl.int64) * each
    for first in range(0, each, ROWS):
        row = begin + first + tl.arange(0, ROWS)
        live = row < N  # `each` is a multiple of ROWS
        inside = live[:, None] & (column < inputs)[None, :]
        where = x + row[:, None] * row_step + column[None, :].to(tl.int64) * column_step
        tile = seen(where, row[:, None] * inputs + column[None, :], inside, seed, DROP)
        thin = live[None, :] & (rank < R)[:, None]
        ups = tl.load(u + row[None, :] * R + rank[:, None], mask=thin, other=0.0)  # (RANKS, ROWS)
        total += tl.dot(ups, tile, input_precision="ieee", out_dtype=WIDE)
    inside = (rank < R)[:, None] & (column < inputs)[None, :]
    place = (tl.program_id(1).to(tl.int64) * R + rank[:, None]) * inputs + column[None, :]
    tl.store(dAs + place, total, mask=inside)


@triton.jit
def spread_kernel(
    dx, u, A, seed, N, inputs, R, DROP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dx += D'(u A), in place, without its factor: dx (N, inputs), u (N, R), A (R, inputs)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANKS)
    thin = (row < N)[:, None] & (rank < R)[None, :]
    ups = tl.load(u + row[:, None] * R + rank[None, :], mask=thin, other=0.0)
    part = (rank < R)[:, None] & (column < inputs)[None, :]
    a = tl.load(A + rank[:, None] * inputs + column[None, :], mask=part, other=0.0)
    added = tl.dot(ups, a.to(ups.dtype), input_precision="ieee", out_dtype=WIDE)
    place = row[:, None] * inputs + column[None, :]
    inside = (row < N)[:, None] & (column < inputs)[None, :]
    added = tl.where(tl.rand(tl.load(seed), place) >= DROP, added, 0.0)
    total = tl.load(dx + place, mask=inside, other=0.0).to(WIDE) + added
    tl.store(dx + place, total.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def sum_kernel(parts, out, M, count, width, row_step, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    """out = SCALE Σ parts: parts (count, M), out (M / width, width) with rows `row_step` apart."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], parts.dtype.element_ty)
    part = at
    for _ in range(0, count):
        total += tl.load(parts + part, mask=at < M, other=0.0)
        part += M
    place = at // width * row_step + at % width
    tl.store(out + place, (total * SCALE).to(out.dtype.element_ty), mask=at < M)


def tiles(rank: int, dtype: torch.dtype) -> dict[str, Any]:
    """The sizes of a tile beside so many ranks; a product's sides are 16 at least."""
    ranks = max(16, triton.next_power_of_2(rank))
    # What is on its way while a tile is computed must fit beside it in 99 KB.
    return {
        "ROWS": ROWS,
        "COLUMNS": max(16, min(WIDEST, NUMBERS // ranks)),
        "RANKS": ranks,
        "WIDE": wide(dtype),
        "num_stages": 3 if dtype.itemsize == 2 else 2,
    } | OPTIONS


def cuts(N: int, width: int, columns: int) -> tuple[int, int, int]:
    """(columns' parts, rows' parts, rows of each) of a matrix (N, width)."""
    beside, blocks = triton.cdiv(width, columns), triton.cdiv(N, ROWS)
    each = triton.cdiv(blocks, max(1, min(blocks, PROGRAMS // beside))) * ROWS
    return beside, triton.cdiv(N, each), each


def summed(parts: Tensor, out: Tensor, scale: float = 1.0) -> Tensor:
    """The sum of parts (count, ...) times scale, into out: a matrix whose rows may lie apart."""
    size = out.numel()
    sum_kernel[(triton.cdiv(size, 1024),)](
        parts, out, size, parts.shape[0], out.shape[-1], out.stride(0), scale, 1024, **OPTIONS
    )
    return out


def room(like: Tensor, *shape: int) -> Tensor:
    """Parts of a sum, in float32 or better."""
    precise = torch.promote_types(like.dtype, torch.float32)
    return torch.empty(shape, dtype=precise, device=like.device)


def low(x: Tensor, plan: Plan, thin: Sequence[Tensor]) -> Tensor:
    """t (N, R) of x (N, in)."""
    A = stacked(thin, x.dtype).contiguous()
    if not plan.drop:
        return scaled(F.linear(x, A), plan)
    (N, inputs), tile = x.shape, tiles(len(A), x.dtype)
    t = torch.empty((N, len(A)), dtype=x.dtype, device=x.device)
    if N:
        low_kernel[(triton.cdiv(N, ROWS),)](
            x, A, t, plan.seed, N, inputs, len(A), *x.stride(), plan.drop,
            **tile | {"COLUMNS": 64},
        )  # fmt: skip
    return scaled(t, plan)


def narrow(g: Tensor, B: Tensor, t: Tensor, u: Tensor, scale: float) -> Tensor:
    """dB (out, R) in B's dtype, and scale * g B into u (N, R), in one reading of g (N, out)."""
    (N, outs), rank, tile = g.shape, B.shape[1], tiles(B.shape[1], g.dtype)
    dB, B = torch.empty(B.shape, dtype=B.dtype, device=B.device), B.contiguous()
    if not N:
        return dB.zero_()
    beside, below, each = cuts(N, outs, tile["COLUMNS"])
    us, dBs = room(g, beside, N, rank), room(g, below, outs, rank)
    narrow_kernel[(beside, below)](
        g, B, t, us, dBs, N, outs, rank, *g.stride(), t.stride(0), each, **tile
    )
    summed(us, u, scale)
    return summed(dBs, dB)


def across(u: Tensor, x: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """dA of every member below each other (R, in): u (N, R), x (N, in)."""
    (N, inputs), rank, tile = x.shape, u.shape[1], tiles(u.shape[1], x.dtype)
    dA = torch.empty((rank, inputs), dtype=dtype, device=x.device)
    if not N:
        return dA.zero_()
    beside, below, each = cuts(N, inputs, tile["COLUMNS"])
    dAs = room(x, below, rank, inputs)
    across_kernel[(beside, below)](
        x, u, dAs, plan.seed if plan.drop else x, N, inputs, rank, *x.stride(), each, plan.drop,
        **tile,
    )  # fmt: skip
    return summed(dAs, dA)


def forward(x: Tensor, plan: Plan, thin: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    """x (N, in) -> every y_j (N, out_j), and t."""
    t = low(x, plan, thin) if thin else None
    return fused.sums(x, t, plan, thin), t


def upward(
    gs: Sequence[Tensor], t: Tensor | None, plan: Plan, thin: Sequence[Tensor], learns: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """u (N, R), and a place for every dA with every dB after it."""
    if t is None:
        return None, [None] * len(thin)
    u = torch.empty(t.shape, dtype=t.dtype, device=t.device)
    grads: list[Tensor | None] = []
    first, each = 0, iter(thin[1::2])
    for g, rank, scale in zip(gs, plan.ranks, plan.scales, strict=True):
        if not rank:
            continue
        part, B = slice(first, first + rank), next(each)
        first += rank
        if learns:
            grads += [None, narrow(g, B, t[:, part], u[:, part], scale)]
        else:
            u[:, part] = (g @ B.to(g.dtype)).mul_(scale)
            grads += [None, None]
    return u, grads


def descend(gs: Sequence[Tensor], u: Tensor | None, plan: Plan, thin: Sequence[Tensor]) -> Tensor:
    """dx (N, in)."""
    dx: Tensor | None = None
    for g, linear in zip(gs, plan.linears, strict=True):
        dx = g @ linear.weight if dx is None else dx.addmm_(g, linear.weight)
    assert dx is not None
    if u is None:
        return dx
    A = stacked(thin, u.dtype).contiguous()
    if not plan.drop:
        return dx.addmm_(u, A)
    N, inputs = dx.shape
    tile = tiles(len(A), dx.dtype)
    if N:
        spread_kernel[(triton.cdiv(N, ROWS), triton.cdiv(inputs, tile["COLUMNS"]))](
            dx, u, A, plan.seed, N, inputs, len(A), plan.drop, **tile
        )
    return dx


def learn(
    u: Tensor | None, x: Tensor | None, plan: Plan, thin: Sequence[Tensor],
    grads: list[Tensor | None],
) -> None:  # fmt: skip
    """Every dA into its place."""
    if u is None or x is None:
        return
    dA = across(u, x, plan, thin[0].dtype)
    for k, part in enumerate(dA.split([rank for rank in plan.ranks if rank])):
        grads[2 * k] = part


def backward(
    gs: Sequence[Tensor],
    x: Tensor | None,
    t: Tensor | None,
    plan: Plan,
    thin: Sequence[Tensor],
    *,
    learns: bool,
    descends: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Every g_j (N, out_j) -> dx, and the gradients of every A and B in turn; as in fused.py."""
    u, grads = upward(gs, t, plan, thin, learns)
    dx = descend(gs, u, plan, thin) if descends else None
    if learns:
        learn(u, x, plan, thin, grads)
    return dx, grads


def adapted_linears(x: Tensor, members: Sequence[Adapted]) -> tuple[Tensor, ...]:
    """x (..., in) -> every (..., out)."""
    return fused.adapted_linears(
        x, members, Products(forward, backward), partial(seed_on, x.device)
    )
