"""The linears that read one input, each with a low-rank change or none, as one operation.

    y_j = x W_jᵀ + b_j + s_j (D(x) A_jᵀ) B_jᵀ              j = q, k, v, say

The A_j stand below each other, so that x is read once for all of them; each B_j adds to its y_j in
place. Kept for the backward pass are x and the thin product t = D(x) Aᵀ (N, R), nothing else: what
autograd keeps of the readable form (reference.py) is several times that. With g_j = dL/dy_j:

    u_j = s_j g_j B_j      dB_j = s_j g_jᵀ t_j      dA = uᵀ D(x)      dx = Σ_j g_j W_j + D'(u A)

(Hu et al. 2021, arXiv:2106.09685, eq. 3, differentiated.) The W_j are frozen and have no gradient;
one in few bits is decoded where it is used and kept by neither pass.

A and B are kept in float32 on a bf16 base, and rounded to bf16 for the products, which add up in
float32: the usual mixed precision, and no coarser than the rounding of y itself. The readable form
multiplies them in float32.

Dropout: one mask for the group, drawn from a seed in each pass and never kept; D(x) = m x / (1 - p)
(Srivastava et al. 2014), and the factor is part of s_j here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minift.kernels.lora.reference import Adapted


@dataclass(frozen=True)
class Plan:
    """What is no tensor with a gradient."""

    members: tuple[Adapted, ...]
    drop: float
    seed: int

    @property
    def scales(self) -> list[float]:
        return [member.scale / (1 - self.drop) for member in self.members]

    @property
    def ranks(self) -> list[int]:
        return [0 if member.A is None else len(member.A) for member in self.members]


def plan(members: Sequence[Adapted]) -> tuple[Plan, list[Tensor]]:
    """The plan, and every A and B in turn."""
    drop = max(member.drop for member in members)
    seed = int(torch.randint(2**62, ())) if drop else 0
    thin = [t for m in members if m.A is not None and m.B is not None for t in (m.A, m.B)]
    return Plan(tuple(members), drop, seed), thin


def kept(x: Tensor, drop: float, seed: int) -> Tensor:
    """The mask of x: 1 where an input of the change is kept."""
    generator = torch.Generator(x.device).manual_seed(seed)
    return torch.empty_like(x).bernoulli_(1 - drop, generator=generator)


def down(x: Tensor, plan: Plan, thin: Sequence[Tensor]) -> tuple[Tensor | None, Tensor | None]:
    """(t, A): x (N, in) -> t (N, R), with all A_j (R, in) below each other."""
    if not thin:
        return None, None
    A = torch.cat([A.to(x.dtype) for A in thin[::2]])
    return F.linear(x * kept(x, plan.drop, plan.seed) if plan.drop else x, A), A


def forward(x: Tensor, plan: Plan, thin: Sequence[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    """x (N, in) -> every y_j (N, out_j), and t."""
    t, _ = down(x, plan, thin)
    ys, first, each = [], 0, iter(thin[1::2])
    for member, rank, scale in zip(plan.members, plan.ranks, plan.scales, strict=True):
        y = F.linear(x, member.linear.weight, member.linear.bias)
        if t is not None and rank:
            B = (next(each) * scale).to(x.dtype)  # (out, R)
            y.addmm_(t[:, first : first + rank], B.T.contiguous())
            first += rank
        ys.append(y)
    return ys, t


def backward(
    gs: Sequence[Tensor],
    x: Tensor,
    t: Tensor | None,
    plan: Plan,
    thin: Sequence[Tensor],
    *,
    learns: bool,
    descends: bool,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Every g_j (N, out_j) -> dx, and the gradients of every A and B in turn.

    `learns`: A and B are trained. `descends`: something below needs dx.
    """
    grads: list[Tensor | None] = []
    us, first, each = [], 0, iter(thin[1::2])
    for g, rank, scale in zip(gs, plan.ranks, plan.scales, strict=True):
        if t is None or not rank:
            continue
        B = next(each)
        us.append(g @ (B * scale).to(g.dtype))  # (N, R)
        if learns:  # the thin side first: its rows are long
            dB = (t[:, first : first + rank].T @ g).T * scale
            grads += [None, dB.to(B.dtype)]
        first += rank
    dx, A = None, None
    if descends:
        for g, member in zip(gs, plan.members, strict=True):
            weight = member.linear.weight
            dx = g @ weight if dx is None else dx.addmm_(g, weight)
    if us:
        u = us[0] if len(us) == 1 else torch.cat(us, dim=1)
        mask = kept(x, plan.drop, plan.seed) if plan.drop else None
        if learns:
            dA = u.T @ (x if mask is None else x * mask)  # (R, in)
            ranks = [rank for rank in plan.ranks if rank]
            for k, part in enumerate(dA.split(ranks)):
                grads[2 * k] = part.to(thin[2 * k].dtype)
        if dx is not None:
            A = torch.cat([A.to(x.dtype) for A in thin[::2]])
            dx = dx.addmm_(u, A) if mask is None else dx.add_((u @ A).mul_(mask))
    return dx, grads or [None] * len(thin)


class Group(torch.autograd.Function):
    """x (N, in) -> (y_j (N, out_j), ...)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: Plan, *thin: Tensor) -> tuple[Tensor, ...]:
        ys, t = forward(x, plan, thin)
        ctx.plan = plan
        ctx.save_for_backward(x, t, *thin)
        return tuple(ys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gs: Tensor) -> tuple[Tensor | None, ...]:
        x, t, *thin = ctx.saved_tensors
        dx, grads = backward(
            gs, x, t, ctx.plan, thin, learns=any(ctx.needs_input_grad[2:]),
            descends=ctx.needs_input_grad[0],
        )  # fmt: skip
        return (dx, None, *grads)


def adapted_linears(x: Tensor, members: Sequence[Adapted]) -> tuple[Tensor, ...]:
    """x (..., in) -> every (..., out)."""
    found, thin = plan(members)
    flat = x.reshape(-1, x.shape[-1])
    # Without gradients the bare forward pass: a Function costs more than a small product.
    plain = not torch.is_grad_enabled()
    ys = forward(flat, found, thin)[0] if plain else Group.apply(flat, found, *thin)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in ys)
