"""Linears that read one input, one product each: the readable twin of every faster form.

y_j = x W_jᵀ + b_j          j = q, k, v, say
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


def linears(x: Tensor, members: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """x (..., in) -> every (..., out)."""
    return tuple(F.linear(x, member.weight, member.bias) for member in members)
