"""Which form an MLP block takes: the fused one wherever its weights are frozen."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minift.kernels.activations import Activation
from minift.kernels.lora.dispatch import fits
from minift.kernels.lora.reference import Adapted
from minift.kernels.mlp import fused, reference


def mlp(x: Tensor, hidden: Sequence[Adapted], out: Adapted, act: Activation) -> Tensor:
    """x (..., D) -> (..., D). `hidden` is gate and up, or up alone."""
    form = fused if fits(x, (*hidden, out)) else reference
    return form.mlp(x, hidden, out, act)
