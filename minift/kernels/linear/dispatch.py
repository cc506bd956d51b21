"""How linears are multiplied by few rows: which have a form of their own, on a CPU.

    bf16       packed, where there are products enough to pay for it
    float32    by oneDNN, straight

Others stay as they are: hooks on them, layers of other kinds, other dtypes and devices.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from minift.kernels import choice
from minift.kernels.linear import packed, straight
from minift.kernels.linear.packed import CALLS, Packed
from minift.kernels.linear.straight import Straight
from minift.kernels.lora.reference import watched


def few_rows(members: Sequence[nn.Linear], calls: int) -> Packed | Straight | None:
    """The form of linears that will be multiplied so often; None: as they are."""
    if not choice.fused():
        return None
    if not all(type(member) is nn.Linear and not watched(member) for member in members):
        return None
    tensors = [t for member in members for t in (member.weight, member.bias) if t is not None]
    kinds = {(t.device.type, t.dtype) for t in tensors}
    if kinds == {("cpu", torch.float32)} and straight.possible():
        return Straight(members)
    if kinds == {("cpu", torch.bfloat16)} and calls >= CALLS and packed.possible():
        return Packed(members)
    return None
