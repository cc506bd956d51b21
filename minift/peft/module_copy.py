"""Weights of the base that an adapter has of its own: PEFT's `modules_to_save`, and trained biases.

    y = W' x + b'       in place of W x + b, while the adapter is active

A token table and a head for new words, norms, the biases of `bias: all` and `lora_only`: whole
tensors, which replace the base's and merge by replacing them. What else the adapter changes at such
a module stands on the copy. (A label head has a file of its own, head.py.)
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minift.kernels.quantized.linear import QuantizedLinear

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Copy(nn.Module):
    """An adapter's own weights of a module, by their names there.

    Trainable ones are parameters, trained with the adapter; others came with it, and stay.
    """

    def __init__(self, tensors: Mapping[str, Tensor], is_trainable: bool):
        super().__init__()
        for leaf, tensor in tensors.items():
            if is_trainable:
                self.register_parameter(leaf, nn.Parameter(tensor))
            else:
                self.register_buffer(leaf, tensor)

    @property
    def is_trainable(self) -> bool:
        return bool(self._parameters)

    def stand_in(self, module: nn.Module) -> nn.Module:
        """The module with these weights; nothing hangs on it."""
        like = dtype_of(module)
        own = {leaf: tensor.to(like) for leaf, tensor in self.tensors().items()}
        twin = copy.copy(module)
        if isinstance(module, QuantizedLinear) and "weight" in own:
            twin = nn.Linear(module.in_features, module.out_features, False, device="meta")
            own.setdefault("bias", module.bias)
        twin._parameters = {k: p for k, p in twin._parameters.items() if k not in own}
        for kind in HOOKS:
            setattr(twin, kind, OrderedDict())
        for leaf, tensor in own.items():  # no parameters: a cast of one leads its gradient back
            object.__setattr__(twin, leaf, tensor)
        return twin

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.state_dict(keep_vars=True)
        return found

    def merged(self, module: nn.Module) -> dict[str, Tensor]:
        """In the base's precision."""
        return {leaf: t.detach().to(dtype_of(module)) for leaf, t in self.tensors().items()}


def dtype_of(module: nn.Module) -> torch.dtype:
    """What a module computes in."""
    if isinstance(module, QuantizedLinear):
        return module.like.dtype
    return next(module.parameters()).dtype


def trainable_options(module: nn.Module) -> dict[str, Any]:
    """Device and dtype of what is trained beside a module: float64 on a float64 base, else float32.

    An AdamW step is smaller than what bf16 can add to a weight.
    """
    found = module.like if isinstance(module, QuantizedLinear) else next(module.parameters())
    dtype = torch.float64 if found.dtype == torch.float64 else torch.float32
    return {"device": found.device, "dtype": dtype}
