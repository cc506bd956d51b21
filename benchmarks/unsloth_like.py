"""LoRA by the schedule that Unsloth publishes: our re-implementation of the idea, not its code.

One Function a group, linear after linear, as its README and kernels describe (2026): the thin
products are added to y in place; x Aᵀ is not kept but made again; g B is made twice, for dA and for
dx; dx grows by one product after the other. Of an MLP x, e and p are kept, and h, de and dp come
from one kernel. Norm, rotation and loss are minift's own Triton kernels, as theirs are of the same
design. What its library adds beside (its own checkpointing, packing, compiled loss) is not here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minift.kernels.activations import Activation
from minift.kernels.lora.reference import Adapted
from minift.peft import slots


def forward(x: Tensor, member: Adapted) -> Tensor:
    """y (N, out)."""
    y = F.linear(x, member.linear.weight, member.linear.bias)
    if member.A is not None and member.B is not None:
        low = x @ member.A.to(x.dtype).T
        y.addmm_(low, member.B.to(x.dtype).T, alpha=member.scale)
    return y


def thin_gradients(g: Tensor, x: Tensor, member: Adapted) -> list[Tensor]:
    """dA and dB."""
    if member.A is None or member.B is None:
        return []
    dA = (g @ member.B.to(g.dtype)).T @ x
    dB = g.T @ (x @ member.A.to(x.dtype).T)
    return [(member.scale * d).to(member.A.dtype) for d in (dA, dB)]


def descend(dx: Tensor | None, g: Tensor, member: Adapted) -> Tensor:
    """dx and what one linear adds to it."""
    weight = member.linear.weight
    dx = g @ weight if dx is None else dx.addmm_(g, weight)
    if member.A is not None and member.B is not None:
        dx.addmm_(g @ member.B.to(g.dtype), member.A.to(g.dtype), alpha=member.scale)
    return dx


class Group(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, members: Sequence[Adapted], *thin: Tensor) -> Any:
        ctx.members = members
        ctx.save_for_backward(x)
        return tuple(forward(x, member) for member in members)

    @staticmethod
    def backward(ctx: Any, *gs: Tensor) -> Any:
        (x,), dx, grads = ctx.saved_tensors, None, []
        for g, member in zip(gs, ctx.members, strict=True):
            grads += thin_gradients(g, x, member)
        for g, member in zip(gs, ctx.members, strict=True):
            dx = descend(dx, g, member)
        return dx, None, *grads


class MLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, hidden: Sequence[Adapted], out: Adapted, act: Activation, *thin: Tensor
    ) -> Tensor:
        from minift.kernels.mlp import triton

        inner = [forward(x, member) for member in hidden]
        ctx.members = (hidden, out, act)
        ctx.save_for_backward(x, *inner)
        return forward(triton.hidden_of(inner, act), out)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        from minift.kernels.mlp import triton

        (hidden, out, act), (x, *inner) = ctx.members, ctx.saved_tensors
        inner_gs, h = triton.gradients_of(descend(None, g, out), inner, act, True)
        assert h is not None
        dx, grads = None, []
        for one, member in zip(inner_gs, hidden, strict=True):
            grads += thin_gradients(one, x, member)
        for one, member in zip(inner_gs, hidden, strict=True):
            dx = descend(dx, one, member)
        return dx, None, None, None, *grads, *thin_gradients(g, h, out)


def thin_of(members: Sequence[Adapted]) -> list[Tensor]:
    return [t for m in members for t in (m.A, m.B) if t is not None]


def adapted_linears(x: Tensor, members: Sequence[Adapted]) -> tuple[Tensor, ...]:
    flat = x.reshape(-1, x.shape[-1])
    ys = Group.apply(flat, members, *thin_of(members))
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in ys)


def mlp(x: Tensor, hidden: Sequence[Adapted], out: Adapted, act: Activation) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    y: Tensor = MLP.apply(flat, hidden, out, act, *thin_of([*hidden, out]))
    return y.view(x.shape)


@contextmanager
def scheduled() -> Iterator[None]:
    """minift's models with these two in place of its own."""
    before = slots.adapted_linears, slots.mlp
    slots.adapted_linears, slots.mlp = adapted_linears, mlp
    try:
        yield
    finally:
        slots.adapted_linears, slots.mlp = before
