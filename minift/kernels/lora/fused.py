"""The linears that read one input, each with a low-rank change or none, as one operation.

    t_j = s_j D(x) A_jᵀ        y_j = x W_jᵀ + b_j + t_j B_jᵀ        j = q, k, v, say

The A_j stand below each other, so that x is read once for all of them; each B_j adds to its y_j in
place. Kept for the backward pass are x and t (N, R), nothing else, and of a group without a change
nothing at all; the readable form (reference.py) keeps a float32 copy of x beside them on a bf16
base, and with dropout one for every change. With g_j = dL/dy_j:

    u_j = s_j g_j B_j      dB_j = g_jᵀ t_j      dA = uᵀ D(x)      dx = Σ_j g_j W_j + D'(u A)

(Hu et al. 2021, arXiv:2106.09685, eq. 3, differentiated.) The W_j are frozen and have no gradient;
one in few bits is decoded where it is used and kept by neither pass.

A and B are kept in float32 on a bf16 base, and rounded to bf16 for the products, which add up in
float32: the usual mixed precision, and no coarser than the rounding of y itself. The readable form
multiplies them in float32.

Dropout: one mask for the group, drawn from a seed (kernels/dropout.py) in each pass and never kept;
D(x) = m x / (1 - p) (Srivastava et al. 2014), and the factor is part of s_j here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minift.kernels import dropout
from minift.kernels.lora.reference import Adapted


@dataclass(frozen=True)
class Plan:
    """A group without its A and B, which autograd keeps: so nothing here outlives a step."""

    linears: tuple[nn.Linear, ...]
    ranks: tuple[int, ...]  # 0 for a linear without a change
    scales: tuple[float, ...]
    drop: float
    seed: Any  # of the mask: a number, or a tensor where a device reads it


def plan(
    members: Sequence[Adapted], seed_of: Callable[[int], Any] = dropout.seed
) -> tuple[Plan, list[Tensor]]:
    """The plan, and every A and B in turn. The group's mask is that of its first change's site."""
    drop = max(member.drop for member in members)
    seed = seed_of(next((m.site for m in members if m.A is not None), 0)) if drop else 0
    thin = [t for m in members if m.A is not None and m.B is not None for t in (m.A, m.B)]
    ranks = tuple(0 if member.A is None else len(member.A) for member in members)
    scales = tuple(member.scale / (1 - drop) for member in members)
    return Plan(tuple(m.linear for m in members), ranks, scales, drop, seed), thin


def kept(x: Tensor, drop: float, seed: int) -> Tensor:
    """The mask of x: 1 where an input of the change is kept."""
    generator = torch.Generator(x.device).manual_seed(seed)
    return torch.empty_like(x).bernoulli_(1 - drop, generator=generator)


def stacked(thin: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """All A_j below each other, (R, in)."""
    return (thin[0] if len(thin) == 2 else torch.cat(list(thin[::2]))).to(dtype)


def scaled(t: Tensor, plan: Plan) -> Tensor:
    """The columns of each member times its scale, in place: (N, R)."""
    found = {s for s, rank in zip(plan.scales, plan.ranks, strict=True) if rank}
    if len(found) == 1:
        return t.mul_(found.pop())
    first = 0
    for scale, rank in zip(plan.scales, plan.ranks, strict=True):
        t[:, first : first + rank].mul_(scale)
        first += rank
    return t


def forward(x: Tensor, plan: Plan, thin: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    """x (N, in) -> every y_j (N, out_j), and t."""
    t = None
    if thin:
        dropped = x * kept(x, plan.drop, plan.seed) if plan.drop else x
        t = scaled(F.linear(dropped, stacked(thin, x.dtype)), plan)
    return sums(x, t, plan, thin), t


def sums(x: Tensor, t: Tensor | None, plan: Plan, thin: Sequence[Tensor]) -> list[Tensor]:
    """Every y_j (N, out_j) = x W_jᵀ + b_j + t_j B_jᵀ."""
    ys, first, each = [], 0, iter(thin[1::2])
    for linear, rank in zip(plan.linears, plan.ranks, strict=True):
        y = F.linear(x, linear.weight, linear.bias)
        if t is not None and rank:
            y.addmm_(t[:, first : first + rank], next(each).to(x.dtype).T)
            first += rank
        ys.append(y)
    return ys


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
    """Every g_j (N, out_j) -> dx, and the gradients of every A and B in turn. x: None without any.

    `learns`: A and B are trained. `descends`: something below needs dx.
    """
    grads: list[Tensor | None] = []
    us, first, each = [], 0, iter(thin[1::2])
    for g, rank in zip(gs, plan.ranks, strict=True):
        if t is None or not rank:
            continue
        B = next(each)
        us.append(g @ B.to(g.dtype))  # (N, R)
        if learns:  # the thin side first: its rows are long
            dB = (t[:, first : first + rank].T @ g).T
            grads += [None, dB.to(B.dtype)]
        first += rank
    dx = None
    if descends:
        for g, linear in zip(gs, plan.linears, strict=True):
            weight = linear.weight
            dx = g @ weight if dx is None else dx.addmm_(g, weight)
    if us and x is not None:
        u = scaled(us[0] if len(us) == 1 else torch.cat(us, dim=1), plan)
        mask = kept(x, plan.drop, plan.seed) if plan.drop else None
        if learns:
            dA = u.T @ (x if mask is None else x * mask)  # (R, in)
            ranks = [rank for rank in plan.ranks if rank]
            for k, part in enumerate(dA.split(ranks)):
                grads[2 * k] = part.to(thin[2 * k].dtype)
        if dx is not None:
            A = stacked(thin, x.dtype)
            dx = dx.addmm_(u, A) if mask is None else dx.add_((u @ A).mul_(mask))
    return dx, grads or [None] * len(thin)


@dataclass(frozen=True)
class Products:
    """A form's two passes, as `forward` and `backward` here."""

    forward: Callable[..., tuple[list[Tensor], Tensor | None]]
    backward: Callable[..., tuple[Tensor | None, list[Tensor | None]]]


TORCH = Products(forward, backward)


class Group(torch.autograd.Function):
    """x (N, in) -> (y_j (N, out_j), ...)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plan: Plan, products: Products, *thin: Tensor
    ) -> tuple[Tensor, ...]:
        ys, t = products.forward(x, plan, thin)
        ctx.plan, ctx.products = plan, products
        ctx.save_for_backward(x if thin else None, t, *thin)
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        x, t, *thin = ctx.saved_tensors
        dx, grads = ctx.products.backward(
            gs, x, t, ctx.plan, thin, learns=any(ctx.needs_input_grad[3:]),
            descends=ctx.needs_input_grad[0],
        )  # fmt: skip
        return (dx, None, None, *grads)


def adapted_linears(
    x: Tensor,
    members: Sequence[Adapted],
    products: Products = TORCH,
    seed_of: Callable[[int], Any] = dropout.seed,
) -> tuple[Tensor, ...]:
    """x (..., in) -> every (..., out), by these products."""
    found, thin = plan(members, seed_of)
    flat = x.reshape(-1, x.shape[-1])
    # Without gradients the bare forward pass: a Function costs more than a small product.
    if torch.is_grad_enabled():
        ys: Sequence[Tensor] = Group.apply(flat, found, products, *thin)
    else:
        ys, _ = products.forward(flat, found, thin)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in ys)
