"""float32 products of few rows, asked of oneDNN directly.

    y_j = x W_jᵀ + b_j

F.linear comes to oneDNN's float32 kernels only by a switch of the whole process (runtime.py), which
sends attention's many small products there too, where they take up to a third longer. The same
kernels, always IEEE float32, are there as an operator of their own: nothing is switched or copied,
and W is read where it is. Measured for SmolLM2's linears, 1 to 32 rows: 10 to 45 % less time than
F.linear without the switch, as much as with it. For more rows the switch's way is faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from minift.kernels.linear.reference import linears

ROWS = 64


def possible() -> bool:
    """Whether this torch has the operator."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Straight:
    """Linears that read one input: x (..., in) -> every (..., out)."""

    def __init__(self, members: Sequence[nn.Linear]):
        self.members = members

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.numel() > ROWS * x.shape[-1]:
            return linears(x, self.members)
        product = torch.ops.mkldnn._linear_pointwise
        return tuple(product(x, m.weight, m.bias, "none", [], "") for m in self.members)
