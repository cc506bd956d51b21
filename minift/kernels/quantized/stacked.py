"""int8 linears that read one input, as one product: their codes below each other.

    y = s ⊙ (x [q_q; q_k; q_v]ᵀ) + b, then cut into its parts

The product and its roundings are those of direct.py, row for row, so the bits are the same. For one
row of SmolLM2, 4 products a layer instead of 7 take 4.7 ms a token instead of 5.5, the calls around
them not counted.

Costs: a second copy of the codes of groups of two or more, for as long as this object lives, and
the time of copying them. Derived: whoever makes it drops it before the weights change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minift.kernels.quantized import direct
from minift.kernels.quantized.linear import QuantizedLinear


def obstacle(linear: QuantizedLinear) -> str | None:
    """Why its products decode it; None where they need not."""
    return direct.obstacle(linear.kind, linear.in_features, linear.like.dtype, linear.like.device)


class Stacked:
    """x (..., in) -> every (..., out); many rows by the linears themselves, which decode."""

    def __init__(self, members: Sequence[QuantizedLinear]):
        self.members, self.widths = members, [member.out_features for member in members]
        self.codes, scale = members[0].codes, members[0].scale
        if len(members) > 1:
            self.codes = torch.cat([member.codes for member in members])  # (sum of out, in)
            scale = torch.cat([member.scale for member in members])
        self.scale, self.bias = scale.view(torch.float32).bfloat16(), None
        if any(member.bias is not None for member in members):
            zeros = members[0].like.new_zeros
            self.bias = torch.cat([
                zeros(member.out_features) if member.bias is None else member.bias.detach()
                for member in members
            ])  # fmt: skip

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.numel() > direct.ROWS * x.shape[-1]:
            return tuple(member(x) for member in self.members)
        y = direct.product(x, self.codes, self.scale, self.bias)
        return (y,) if len(self.widths) == 1 else y.split_with_sizes(self.widths, dim=-1)
