"""bf16 matrices below each other, in the order in which the processor multiplies them.

    y = x [W_q; W_k; W_v]ᵀ + b, one product, then cut into its parts

A bf16 product on a CPU takes weights in tiles of pairs (oneDNN's AB16b64a2b: 64 outputs by 32
inputs, two neighbouring inputs beside each other). Given a plain matrix, oneDNN makes the tiles
anew in every call, which for one row takes as long as reading the matrix: half of the time of a
token. Here they are made once. The sums are the same and so are the bits.

Costs: a second copy of the weights, for as long as this object lives, and about as much time as
`CALLS` plain products. Derived: whoever makes it drops it before the weights change.

float32 gains nothing: its products read plain rows as they are (straight.py), and stacking the rows
of a group alone saves calls of 20 microseconds, less than a copy costs below 200 tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CALLS = 32  # products after which packing has paid for itself, with room: measured 16 to 25


def possible() -> bool:
    """Whether this torch packs, and this processor multiplies bf16."""
    ops = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(ops, "_reorder_linear_weight")
        and hasattr(ops, "_linear_pointwise")
        and bool(ops._is_mkldnn_bf16_supported())
    )


class Packed:
    """Linears that read one input, as one product: x (..., in) -> every (..., out)."""

    def __init__(self, members: Sequence[nn.Linear]):
        weights = [member.weight.detach() for member in members]
        whole = weights[0] if len(weights) == 1 else torch.cat(weights)  # (sum of out, in)
        self.widths = [len(weight) for weight in weights]
        self.matrix = torch.ops.mkldnn._reorder_linear_weight(whole.contiguous(), 1)
        self.bias = None
        if any(member.bias is not None for member in members):
            self.bias = torch.cat([
                whole.new_zeros(member.out_features) if member.bias is None else member.bias
                for member in members
            ]).detach()  # fmt: skip

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.parts(self.whole(x))

    def whole(self, x: Tensor) -> Tensor:
        """(..., sum of out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, "none", [], "")
        return y

    def parts(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y,) if len(self.widths) == 1 else y.split(self.widths, dim=-1)
