"""The elementwise functions of MLPs, by name, each with its derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """f, and (g, x, f(x)) -> g f'(x), each one pass over memory."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


ACTIVATIONS = {
    "silu": Activation(F.silu, lambda g, x, y: aten.silu_backward(g, x)),
    "gelu": Activation(F.gelu, lambda g, x, y: aten.gelu_backward(g, x)),
    "gelu_tanh": Activation(
        lambda x: F.gelu(x, approximate="tanh"),
        lambda g, x, y: aten.gelu_backward(g, x, approximate="tanh"),
    ),
    "relu": Activation(F.relu, lambda g, x, y: aten.threshold_backward(g, x, 0)),
    "tanh": Activation(torch.tanh, lambda g, x, y: aten.tanh_backward(g, y)),
}
