"""The MLP block as the papers write it: the readable twin of every faster form.

    y = down(f(up(x)))            plain
    y = down(f(gate(x)) * up(x))  gated; Shazeer 2020, arXiv:2002.05202, eq. 6

Each of the linears may have a low-rank change (kernels/lora).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from minift.kernels.activations import Activation
from minift.kernels.lora.reference import Adapted, adapted_linear, adapted_linears


def mlp(x: Tensor, hidden: Sequence[Adapted], out: Adapted, act: Activation) -> Tensor:
    """x (..., D) -> (..., D). `hidden` is gate and up, or up alone."""
    first, *gated = adapted_linears(x, hidden)
    h = act(first)
    return adapted_linear(h * gated[0] if gated else h, out)
