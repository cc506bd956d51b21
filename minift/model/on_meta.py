"""A transformer without memory: for its parameters' names and shapes, or to be filled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from minift.model.config import ModelConfig
from minift.model.transformer import Transformer


class _NoRandomInit(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def on_meta(config: ModelConfig, source: str = "") -> Transformer:
    """A transformer whose parameters have shapes and no memory.

    TRAP: to initialize an embedding on the meta device, torch imports 800 modules of its compiler,
    which takes over a second and 90 MB, for values that do not exist. So that call is skipped.
    """
    with torch.device("meta"), _NoRandomInit():
        return Transformer(config, source)
