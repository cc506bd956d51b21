"""The low-rank changes of linears that read one input, where nothing is learned: two products.

    [d_q d_k d_v] = (x [A_q; A_k; A_v]ᵀ) [s_q B_q  0  0;  0  s_k B_k  0;  0  0  s_v B_v]ᵀ

In the precision of A and B, rounded once to x's: as in the readable twin (reference.low_rank). For
one row the zeros cost less than calls of their own would.

Why not merged into the weights: in bf16 an update smaller than half of a weight's last bit is lost.
Of a trained adapter little is: after 100 steps on reviews the mean KL from the float32 model was
0.0020 nats merged, 0.0021 like this and 0.0020 for the base alone. But an adapter that has only
begun to learn would act as none at all, and what merging saves of a token does not pay for a merged
copy of the weights below hundreds of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from minift.kernels.lora.reference import Adapted


class Thin:
    """What the changes of some linears add: x (..., in) -> every (..., out).

    Derived from A and B as they are now: whoever makes it drops it before they change.
    """

    def __init__(self, members: Sequence[Adapted]):
        self.widths = [member.linear.out_features for member in members]
        self.A = torch.cat([m.A.detach() for m in members if m.A is not None])  # (sum of R, in)
        self.B = self.A.new_zeros(sum(self.widths), len(self.A))  # (sum of out, sum of R)
        row = column = 0
        for member, width in zip(members, self.widths, strict=True):
            if member.A is not None and member.B is not None:
                R = len(member.A)
                self.B[row : row + width, column : column + R] = member.B.detach() * member.scale
                column += R
            row += width

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.whole(x).to(x.dtype).split(self.widths, dim=-1)

    def whole(self, x: Tensor) -> Tensor:
        """(..., sum of out), in the precision of A and B."""
        return F.linear(F.linear(x.to(self.A.dtype), self.A), self.B)
