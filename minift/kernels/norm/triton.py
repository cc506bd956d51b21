"""Root-mean-square normalization in one pass over memory each way, for a GPU.

    y = r x * c        r = 1 / sqrt(mean(x²) + eps)        c = offset + w, frozen
    dx = r h - (r³ / D) (h · x) x        h = c * g

The algebra of fused.py, which has the derivation (Zhang & Sennrich 2019, arXiv:1910.07467). A
program takes a few whole rows: x is read once, its square summed in registers, y written once;
backward reads x and g and writes dx. Kept are x and r, one number a row.

What would be fused further is the residual sum before a norm; but the sum is one sublayer's and the
norm the next one's, and methods stand between the two (model/transformer.py, `sublayer.change`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from minift.kernels.activations_triton import OPTIONS, wide

NUMBERS = 4096  # of x in one program, unless a row has more


@triton.jit
def forward_kernel(
    x, weight, y, r, N, stride,
    D: tl.constexpr, EPS: tl.constexpr, OFFSET: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, WIDTH)
    inside = (row < N)[:, None] & (at < D)[None, :]
    x_wide = tl.load(x + row[:, None] * stride + at[None, :], mask=inside, other=0.0).to(WIDE)
    scale = tl.rsqrt(tl.sum(x_wide * x_wide, 1) / D + EPS)  # (ROWS,)
    tl.store(r + row, scale, mask=row < N)
    c = tl.load(weight + at, mask=at < D, other=0.0).to(WIDE)[None, :]
    normal = x_wide * scale[:, None]
    if OFFSET != 0:
        found = normal * (OFFSET + c)
    else:  # rounded before the weight, as the models' own training does
        found = normal.to(y.dtype.element_ty).to(WIDE) * c
    tl.store(y + row[:, None] * D + at[None, :], found.to(y.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    g, x, weight, r, dx, N, g_stride, x_stride,
    D: tl.constexpr, OFFSET: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = tl.arange(0, WIDTH)
    inside = (row < N)[:, None] & (at < D)[None, :]
    x_wide = tl.load(x + row[:, None] * x_stride + at[None, :], mask=inside, other=0.0).to(WIDE)
    h = tl.load(g + row[:, None] * g_stride + at[None, :], mask=inside, other=0.0).to(WIDE)
    c = tl.load(weight + at, mask=at < D, other=0.0).to(WIDE)
    h = h * (OFFSET + c)[None, :]
    scale = tl.load(r + row, mask=row < N, other=0.0)
    dot = tl.sum(h * x_wide, 1) * scale * scale / D  # (ROWS,)
    found = scale[:, None] * (h - dot[:, None] * x_wide)
    tl.store(dx + row[:, None] * D + at[None, :], found.to(dx.dtype.element_ty), mask=inside)


def order(x: Tensor) -> list[int]:
    """The dimensions of x from that of the longest strides down, the last one left last."""
    return [*sorted(range(x.dim() - 1), key=lambda d: -x.stride()[d]), x.dim() - 1]


def rows(x: Tensor, dims: Sequence[int]) -> Tensor:
    """(..., D) -> (N, D) in the order of `dims`: a view where x lies in it, a copy elsewhere."""
    flat = x.permute(*dims).reshape(-1, x.shape[-1])
    return flat if flat.stride(-1) == 1 else flat.contiguous()


def back(flat: Tensor, x: Tensor, dims: Sequence[int]) -> Tensor:
    """(N, D) -> the shape of x, each row in its place."""
    turned = flat.view([x.shape[d] for d in dims])
    return turned.permute([dims.index(d) for d in range(x.dim())])


def tiles(D: int) -> dict[str, Any]:
    width = triton.next_power_of_2(D)
    some = max(1, NUMBERS // width)
    warps = max(4, min(16, some * width // 1024))
    return {"ROWS": some, "WIDTH": width, "num_warps": warps} | OPTIONS


class RMSNorm(torch.autograd.Function):
    """x (..., D) -> (..., D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        dims = order(x)
        flat = rows(x, dims)
        (N, D), precise = flat.shape, torch.promote_types(x.dtype, torch.float32)
        y = torch.empty((N, D), dtype=x.dtype, device=x.device)
        r = torch.empty(N, dtype=precise, device=x.device)
        if N:
            tile = tiles(D)
            forward_kernel[(triton.cdiv(N, tile["ROWS"]),)](
                flat, weight, y, r, N, flat.stride(0), D, eps, offset, WIDE=wide(x.dtype), **tile
            )
        ctx.dims, ctx.offset = dims, offset
        ctx.save_for_backward(x, r, weight)
        return back(y, x, dims)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, r, weight = ctx.saved_tensors
        flat, down = rows(x, ctx.dims), rows(g, ctx.dims)
        N, D = flat.shape
        dx = torch.empty((N, D), dtype=x.dtype, device=x.device)
        if N:
            tile = tiles(D)
            backward_kernel[(triton.cdiv(N, tile["ROWS"]),)](
                down, flat, weight, r, dx, N, down.stride(0), flat.stride(0), D, ctx.offset,
                WIDE=wide(x.dtype), **tile,
            )  # fmt: skip
        return back(dx, x, ctx.dims), None, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """x (..., D), weight (D,) -> (..., D)."""
    y: Tensor = RMSNorm.apply(x, weight.contiguous(), eps, offset)
    return y
