"""float32 products of few rows, asked of oneDNN directly.

    y_j = x W_jᵀ + b_j

F.linear comes to oneDNN's float32 kernels only by a switch of the whole process (runtime.py), which
sends attention's many small products there too, where they take up to a third longer. The same
kernels, always IEEE float32, are there as an operator of their own: nothing is switched or copied,
and W is read where it is. Measured for SmolLM2's linears, 1 to 32 rows: 10 to 45 % less time than
F.linear without the switch, as much as with it. For more rows the switch's way is faster.

One row by few outputs is something else: oneDNN keeps it on one thread. As two products of half the
outputs, a batch of two, it takes both: 576 outputs of 1,536 inputs 87 microseconds instead of 133,
of 576 inputs 31 instead of 56; from 896 outputs on that is slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from minift.kernels.linear.reference import linears

ROWS = 64
NARROW = 768  # outputs that oneDNN multiplies by one row on one thread


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
        if x.numel() == x.shape[-1] and torch.get_num_threads() > 1:
            return tuple(map(partial(single, x), self.members))
        return tuple(map(partial(product, x), self.members))


def product(x: Tensor, member: nn.Linear) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, member.weight, member.bias, "none", [], "")
    return y


def single(x: Tensor, member: nn.Linear) -> Tensor:
    """One row, x (..., in) -> (..., out)."""
    outputs, inputs = member.weight.shape
    if outputs > NARROW or outputs % 2:
        return product(x, member)
    halves = member.weight.view(2, -1, inputs).mT  # (2, in, out / 2)
    y = torch.bmm(x.reshape(1, 1, inputs).expand(2, 1, inputs), halves)  # (2, 1, out / 2)
    y = y.view(*x.shape[:-1], outputs)
    return y if member.bias is None else y + member.bias
