"""BitFit in a folder of PEFT's form; PEFT itself has no such method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minift.interop.module_names import Spelling, Theirs
from minift.interop.peft_format import Format, Problems, Shapes
from minift.model.transformer import Transformer
from minift.peft.bitfit import BitFit, Change, places


def read(
    data: Mapping[str, Any], spelled: Spelling | None, there: Shapes, problems: Problems
) -> BitFit:
    return BitFit()


def touched(model: Transformer, config: BitFit) -> list[str]:
    return [path for path, _ in places(model)]


def write(config: BitFit, spelled: Spelling, found: Mapping[str, nn.Module]) -> dict[str, Any]:
    return {"target_modules": spelled.modules(found)}


def to_file(theirs: Theirs, parts: Sequence[nn.Module | None]) -> dict[str, Tensor]:
    return {"bias_change": theirs.join([part.d for part in parts if isinstance(part, Change)])}


def shapes(theirs: Theirs, config: BitFit) -> dict[str, tuple[int, ...]]:
    return {"bias_change": (sum(theirs.outputs),)}


@torch.no_grad()
def fill(theirs: Theirs, parts: Sequence[nn.Module], tensors: Mapping[str, Tensor]) -> None:
    for part, block in zip(parts, theirs.split(tensors["bias_change"]), strict=True):
        assert isinstance(part, Change)
        part.d.copy_(block)


def idle(tensors: Mapping[str, Tensor]) -> bool:
    return not any(bool(tensor.any()) for tensor in tensors.values())


FILE = Format(
    "BITFIT",
    read,
    touched,
    write,
    to_file,
    shapes,
    fill,
    idle,
    stems=("bias_change",),
    options=("target_modules",),
)
