"""BitFit in a folder of PEFT's form; PEFT itself has no such method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minift.interop.module_names import HFModule, ModuleNames
from minift.interop.peft_format import Format, Problems, Shapes
from minift.model.transformer import Transformer
from minift.peft.bitfit import BitFit, BitFitLayer, target_modules


def read(
    data: Mapping[str, Any], module_names: ModuleNames | None, there: Shapes, problems: Problems
) -> BitFit:
    return BitFit()


def touched(model: Transformer, config: BitFit) -> list[str]:
    return [path for path, _ in target_modules(model)]


def write(
    config: BitFit, module_names: ModuleNames, found: Mapping[str, nn.Module]
) -> dict[str, Any]:
    return {"target_modules": module_names.modules(found)}


def to_file(theirs: HFModule, parts: Sequence[nn.Module | None]) -> dict[str, Tensor]:
    return {"bias_change": theirs.join([part.d for part in parts if isinstance(part, BitFitLayer)])}


def shapes(theirs: HFModule, config: BitFit) -> dict[str, tuple[int, ...]]:
    return {"bias_change": (sum(theirs.outputs),)}


@torch.no_grad()
def fill(theirs: HFModule, parts: Sequence[nn.Module], tensors: Mapping[str, Tensor]) -> None:
    for part, block in zip(parts, theirs.split(tensors["bias_change"]), strict=True):
        assert isinstance(part, BitFitLayer)
        part.d.copy_(block)


def is_identity(tensors: Mapping[str, Tensor]) -> bool:
    return not any(bool(tensor.any()) for tensor in tensors.values())


FILE = Format(
    "BITFIT",
    read,
    touched,
    write,
    to_file,
    shapes,
    fill,
    is_identity,
    stems=("bias_change",),
    options=("target_modules",),
)
