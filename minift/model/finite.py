"""Weights that are made or written must be finite: one NaN in them spreads to every output."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from minift.errors import ConfigError, one_line


def check_finite(what: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse NaN and infinities; the error names `what` is being done and the first such tensor."""
    for name, tensor in tensors:
        if not is_finite(tensor):
            raise ConfigError(
                f'{what}: tensor "{one_line(name, 200)}" holds a weight that is not finite'
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; without the mask as large as the tensor of `isfinite`."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return True
    least, most = tensor.detach().aminmax()  # each is NaN where a number is
    return math.isfinite(float(least)) and math.isfinite(float(most))
