"""The MLP block for a GPU: between the products one pass over memory each way.

    e = gate(x)      p = up(x)      h = f(e) * p      y = down(h)
    dp = dh * f(e)      de = dh * p * f'(e)

The algebra of fused.py, which keeps x, e and p. The backward pass needs h again, for down's dA:
one kernel reads dh, e and p and writes h, dp, and de where dh was, which nobody reads again. e and
p stay as they are: a second backward pass over the same graph would read what was written there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from minift.kernels.activations import ACTIVATIONS, Activation
from minift.kernels.activations_triton import OPTIONS, activation, slope, wide
from minift.kernels.dropout import seed_on
from minift.kernels.lora import triton as lora
from minift.kernels.lora.fused import Plan, plan
from minift.kernels.lora.reference import Adapted

NAMES = {act: name for name, act in ACTIVATIONS.items()}
BLOCK = 2048  # numbers in a program


@triton.jit
def forward_kernel(
    e, p, h, M, NAME: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    """h = f(e) * p, or f(e)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    y = activation(tl.load(e + at, mask=at < M, other=0.0).to(WIDE), NAME)
    if GATED:
        y = y * tl.load(p + at, mask=at < M, other=0.0).to(WIDE)
    tl.store(h + at, y.to(h.dtype.element_ty), mask=at < M)


@triton.jit
def backward_kernel(
    dh, e, p, h, dp, M,
    NAME: tl.constexpr, GATED: tl.constexpr, AGAIN: tl.constexpr, BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """dh becomes de; dp; and h where it is wanted AGAIN."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < M
    g = tl.load(dh + at, mask=there, other=0.0).to(WIDE)
    x = tl.load(e + at, mask=there, other=0.0).to(WIDE)
    f, d = activation(x, NAME), g * slope(x, NAME)
    if GATED:
        other = tl.load(p + at, mask=there, other=0.0).to(WIDE)
        tl.store(dp + at, (g * f).to(dp.dtype.element_ty), mask=there)
        f, d = f * other, d * other
    if AGAIN:
        tl.store(h + at, f.to(h.dtype.element_ty), mask=there)
    tl.store(dh + at, d.to(dh.dtype.element_ty), mask=there)


def hidden_of(inner: Sequence[Tensor], act: Activation) -> Tensor:
    """h of e and p, or of e alone."""
    e, p = inner[0], inner[-1]
    h = torch.empty(e.shape, dtype=e.dtype, device=e.device)
    if e.numel():
        forward_kernel[(triton.cdiv(e.numel(), BLOCK),)](
            e,
            p,
            h,
            e.numel(),
            NAMES[act],
            len(inner) == 2,
            BLOCK,
            wide(e.dtype),
            **OPTIONS,
        )
    return h


def gradients_of(
    dh: Tensor, inner: Sequence[Tensor], act: Activation, again: bool
) -> tuple[list[Tensor], Tensor | None]:
    """[de, dp] or [de], de in dh's memory; and h if it is wanted again."""
    e, p, gated = inner[0], inner[-1], len(inner) == 2
    made = [torch.empty(e.shape, dtype=e.dtype, device=e.device) for _ in range(gated + again)]
    h, dp = made[-1] if again else dh, made[0] if gated else dh
    if e.numel():
        backward_kernel[(triton.cdiv(e.numel(), BLOCK),)](
            dh,
            e,
            p,
            h,
            dp,
            e.numel(),
            NAMES[act],
            gated,
            again,
            BLOCK,
            wide(e.dtype),
            **OPTIONS,
        )
    return [dh, dp] if gated else [dh], h if again else None


class MLP(torch.autograd.Function):
    """x (N, D) -> (N, D)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, hidden: Plan, out: Plan, act: Activation, count: int, *thin: Tensor
    ) -> Tensor:
        inner, t = lora.forward(x, hidden, thin[:count])
        (y,), t_out = lora.forward(hidden_of(inner, act), out, thin[count:])
        ctx.plans, ctx.act, ctx.count = (hidden, out), act, count
        ctx.save_for_backward(x if count else None, t, t_out, *inner, *thin)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (hidden, out), act, count = ctx.plans, ctx.act, ctx.count
        x, t, t_out, *rest = ctx.saved_tensors
        width = len(hidden.linears)
        inner, thin = rest[:width], rest[width:]
        learns = any(ctx.needs_input_grad[5:])
        u, of_out = lora.upward((g,), t_out, out, thin[count:], learns)
        dh = lora.descend((g,), u, out, thin[count:])
        inner_gs, h = gradients_of(dh, inner, act, learns and u is not None)
        if learns:
            lora.learn(u, h, out, thin[count:], of_out)
        del h
        dx, of_hidden = lora.backward(
            inner_gs, x, t, hidden, thin[:count], learns=learns, descends=ctx.needs_input_grad[0]
        )
        return (dx, None, None, None, None, *of_hidden, *of_out)


def mlp(x: Tensor, hidden: Sequence[Adapted], out: Adapted, act: Activation) -> Tensor:
    """x (..., D) -> (..., D)."""
    seed_of = partial(seed_on, x.device)
    first, thin = plan(hidden, seed_of)
    last, more = plan((out,), seed_of)
    y: Tensor = MLP.apply(x.reshape(-1, x.shape[-1]), first, last, act, len(thin), *thin, *more)
    return y.view(*x.shape[:-1], y.shape[-1])
