"""The MLP block as one operation, which keeps x and what its first linears gave, nothing else.

    e = gate(x)      p = up(x)      h = f(e) * p      y = down(h)

Autograd keeps f(e) and h beside e and p, and two copies in float32 on a bf16 base. Here both are
made again in the backward pass, which costs two passes over memory and no product. With g = dL/dy
and dh from down's own backward pass (kernels/lora/fused.py):

    dp = dh * f(e)      de = dh * p * f'(e)

after which those of gate and up give dx. Without a gate h = f(e) and de = dh * f'(e).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minift.kernels.activations import Activation
from minift.kernels.lora import fused
from minift.kernels.lora.fused import Plan, plan
from minift.kernels.lora.reference import Adapted


class MLP(torch.autograd.Function):
    """x (N, D) -> (N, D)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, hidden: Plan, out: Plan, act: Activation, count: int, *thin: Tensor
    ) -> Tensor:
        inner, t = fused.forward(x, hidden, thin[:count])
        h = act(inner[0])
        if len(inner) == 2:
            h.mul_(inner[1])
        (y,), t_out = fused.forward(h, out, thin[count:])
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
        f = act(inner[0])
        h = f * inner[1] if width == 2 else f
        dh, of_out = fused.backward(
            (g,), h, t_out, out, thin[count:], learns=learns, descends=True
        )  # fmt: skip
        assert dh is not None
        del h
        if width == 2:
            dp = f * dh
            inner_gs = [act.backward(dh.mul_(inner[1]), inner[0], f), dp]
        else:
            inner_gs = [act.backward(dh, inner[0], f)]
        del dh, f
        dx, of_hidden = fused.backward(
            inner_gs, x, t, hidden, thin[:count], learns=learns, descends=ctx.needs_input_grad[0]
        )
        return (dx, None, None, None, None, *of_hidden, *of_out)


def mlp(x: Tensor, hidden: Sequence[Adapted], out: Adapted, act: Activation) -> Tensor:
    """x (..., D) -> (..., D)."""
    first, thin = plan(hidden)
    last, more = plan((out,))
    y: Tensor = MLP.apply(x.reshape(-1, x.shape[-1]), first, last, act, len(thin), *thin, *more)
    return y.view(*x.shape[:-1], y.shape[-1])
