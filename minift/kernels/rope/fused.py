"""Turning heads without temporaries: one result, two passes over each half.

The backward pass turns the other way, by -a: a rotation's transpose. Nothing of x is kept.

Without one, a single position is turned in six calls with temporaries, its queries and keys beside
each other: its numbers are few, and the calls are what it costs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def turn(x: Tensor, cos: Tensor, sin: Tensor, way: int) -> Tensor:
    half = cos.shape[-1]
    y = torch.empty_like(x)  # in the layout of x, heads beside each other
    first, second = x[..., :half], x[..., half : 2 * half]
    torch.mul(first, cos, out=y[..., :half]).addcmul_(second, sin, value=-way)
    torch.mul(second, cos, out=y[..., half : 2 * half]).addcmul_(first, sin, value=way)
    if 2 * half < x.shape[-1]:
        y[..., 2 * half :] = x[..., 2 * half :]
    return y


def turn_one(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    first, second, *rest = x.split_with_sizes((half, half, x.shape[-1] - 2 * half), dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1)
    return torch.cat((turned, torch.addcmul(second * cos, first, sin), *rest), dim=-1)


def turn_both(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """q (B, H, 1, E) and k (B, K, 1, E) by the same angles."""
    H, K = q.shape[1], k.shape[1]
    q, k = turn_one(torch.cat((q, k), dim=1), cos, sin).split_with_sizes((H, K), dim=1)
    return q, k


def widened(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The angles (B, 1, T, E/2) as `turn_widened` takes them, for many heads: (B, 1, T, E)."""
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def turn_widened(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """`turn_both` where all channels turn, in half of the calls."""
    H, K = q.shape[1], k.shape[1]
    x = torch.cat((q, k), dim=1)
    other = x.roll(x.shape[-1] // 2, -1)  # each channel's partner
    q, k = torch.addcmul(x * cos, other, sin).split_with_sizes((H, K), dim=1)
    return q, k


class Rotate(torch.autograd.Function):
    """x (B, H, T, E), cos and sin (B, 1, T, E/2) -> (B, H, T, E)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turn(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return turn(g, cos, sin, -1), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first channels of x (B, H, T, E) by angles (B, 1, T, E/2); the rest stay."""
    if not torch.is_grad_enabled():
        return turn_one(x, cos, sin) if x.shape[2] == 1 else turn(x, cos, sin, 1)
    y: Tensor = Rotate.apply(x, cos, sin)
    return y
