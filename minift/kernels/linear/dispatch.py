"""Whether linears are packed: dense bf16 on a CPU, plain layers, products enough to pay for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from minift.kernels import choice
from minift.kernels.linear.packed import CALLS, Packed, possible
from minift.kernels.lora.reference import watched


def packed(members: Sequence[nn.Linear], calls: int) -> Packed | None:
    """The packed form of linears that will be multiplied so often; None: as they are."""
    if not choice.fused() or calls < CALLS:
        return None
    plain = all(type(member) is nn.Linear and not watched(member) for member in members)
    if not plain or not possible():
        return None
    tensors = [t for member in members for t in (member.weight, member.bias) if t is not None]
    fits = all(t.device.type == "cpu" and t.dtype == torch.bfloat16 for t in tensors)
    return Packed(members) if fits else None
