"""Which form a projection group takes: the fused one wherever its weights are frozen.

The low-rank products of the fused form are in the base's dtype, so where a group is trained in a
precision of its own (an adapter in float64 on a float32 base), or must keep its own (`exact`), the
readable form runs. Triton's takes the place of the fused one on a GPU, up to a rank where the
products stop being thin.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minift.kernels import choice
from minift.kernels.lora import reference
from minift.kernels.lora.reference import Adapted

RANKS = 256  # of a group: above, a tile of Triton's would be all rank and no columns


def fits(x: Tensor, members: Sequence[Adapted]) -> bool:
    """Whether the fused form computes these: frozen weights, floats, one rate of dropout."""
    if not choice.fused() or not x.dtype.is_floating_point:
        return False
    changed = [member for member in members if member.A is not None]
    wide = torch.promote_types(x.dtype, torch.float32)
    return len({member.drop for member in changed}) < 2 and all(
        m.frozen and (m.A is None or m.A.dtype == (x.dtype if m.exact else wide)) for m in members
    )


def in_triton(x: Tensor, members: Sequence[Adapted]) -> bool:
    """Whether Triton's form computes what the fused one fits."""
    return choice.triton(x) and sum(len(m.A) for m in members if m.A is not None) <= RANKS


def adapted_linears(x: Tensor, members: Sequence[Adapted]) -> tuple[Tensor, ...]:
    """x (..., in) -> every (..., out)."""
    if fits(x, members):
        if in_triton(x, members):
            from minift.kernels.lora import triton

            return triton.adapted_linears(x, members)
        from minift.kernels.lora import fused

        return fused.adapted_linears(x, members)
    return reference.adapted_linears(x, members)


def adapted_rows(
    x: Tensor, members: Sequence[Sequence[Adapted]], which: Sequence[int]
) -> tuple[Tensor, ...]:
    """x (B, T, in) -> every (B, T, out): each row with a change of its own, or none."""
    if not choice.fused():
        return reference.adapted_rows(x, members, which)
    from minift.kernels.lora import rows

    return rows.adapted_rows(x, members, which)
