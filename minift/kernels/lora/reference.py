"""LoRA's product, as the paper writes it: the readable twin of every faster form.

    y = x Wᵀ + b + s (D(x) Aᵀ) Bᵀ          W (out, in) frozen · A (R, in) · B (out, R) · s a number

Hu et al. 2021, arXiv:2106.09685, eq. 3. Backward, from g = dL/dy (autograd derives the same):

    u = s g B     dB = s gᵀ (D(x) Aᵀ)     dA = uᵀ D(x)     dx = g W + D'(u A)

B is turned before the product: autograd then finds u and dB as products with long contiguous rows,
two to three times as fast on a CPU as with B's own rows of R numbers.

A and B are kept in float32 (or better) whatever the dtype of the base; the low-rank product is
computed in theirs and rounded once to the base's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Adapted:
    """A Linear, and the low-rank change that is added to it, if any."""

    linear: nn.Linear  # of a quantised one, `weight` is decoded anew each time
    A: Tensor | None = None  # (R, in)
    B: Tensor | None = None  # (out, R)
    scale: float = 1.0
    drop: float = 0.0
    exact: bool = False  # its products are never in less than the precision of A and B
    site: int = 0  # a number for its name: its dropout mask is drawn by it

    @property
    def frozen(self) -> bool:
        """Whether nothing of the Linear itself is being trained, or watched by a hook."""
        if watched(self.linear):
            return False
        trained = any(parameter.requires_grad for parameter in self.linear.parameters())
        return not (trained and torch.is_grad_enabled())


def hooks_of(module: nn.Module) -> tuple[Any, ...]:
    """Every hook of torch's that hangs on it."""
    return (
        *module._forward_hooks.values(), *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(), *module._backward_pre_hooks.values(),
    )  # fmt: skip


def watched(module: nn.Module) -> bool:
    """Whether hooks hang on it, which a kernel would pass by."""
    return bool(hooks_of(module))


def adapted_linears(x: Tensor, members: Sequence[Adapted]) -> tuple[Tensor, ...]:
    """Linears that read one input: x (..., in) -> every (..., out)."""
    return tuple(adapted_linear(x, member) for member in members)


def adapted_linear(x: Tensor, member: Adapted) -> Tensor:
    """x (..., in) -> (..., out)."""
    y: Tensor = member.linear(x)
    if member.A is None or member.B is None:
        return y
    return y + low_rank(x, member.A, member.B, member.scale, member.drop)


def low_rank(x: Tensor, A: Tensor, B: Tensor, scale: float, drop: float) -> Tensor:
    """What the change adds, x (..., in) -> (..., out). `drop`: an input's chance to be left out."""
    s = F.linear(F.dropout(x, drop).to(A.dtype), A) * scale  # (..., R)
    return (s @ B.T.contiguous()).to(x.dtype)


def adapted_rows(
    x: Tensor, members: Sequence[Sequence[Adapted]], which: Sequence[int]
) -> tuple[Tensor, ...]:
    """Linears that read one input, in a batch whose rows have changes of their own.

    x (B, T, in) -> every (B, T, out). members[j][k] is linear j with what adapter k adds to it;
    which[b] is the k of row b, or -1 for no change.
    """
    ys = []
    for changes in members:
        y = changes[0].linear(x)
        for k, one in enumerate(changes):
            at = torch.tensor([b for b, w in enumerate(which) if w == k], device=x.device).long()
            if one.A is not None and one.B is not None:
                y = y.index_add(0, at, low_rank(x[at], one.A, one.B, one.scale, 0.0))
        ys.append(y)
    return tuple(ys)
