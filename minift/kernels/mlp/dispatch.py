"""Which form an MLP block takes: the fused one wherever its weights are frozen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minift.kernels.activations import Activation
from minift.kernels.lora.dispatch import fits, in_triton
from minift.kernels.lora.reference import Adapted
from minift.kernels.mlp import reference


def mlp(x: Tensor, hidden: Sequence[Adapted], out: Adapted, act: Activation) -> Tensor:
    """x (..., D) -> (..., D). `hidden` is gate and up, or up alone."""
    if not fits(x, (*hidden, out)):
        return reference.mlp(x, hidden, out, act)
    if in_triton(x, hidden) and in_triton(x, (out,)):
        from minift.kernels.mlp import triton

        return triton.mlp(x, hidden, out, act)
    from minift.kernels.mlp import fused

    return fused.mlp(x, hidden, out, act)
