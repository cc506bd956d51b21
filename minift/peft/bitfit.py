"""BitFit: only the biases learn.

    y = W x + b + d        LayerNorm: x̂ ⊙ w + b + d        d starts at zero

Ben Zaken et al. 2021, arXiv:2106.10199, section 3. The paper trains b itself; here d is trained
beside it, which is the same mathematics and leaves the base as it is. A family without biases
(Llama, Gemma) gets zero ones on its linears; an RMS norm has no bias and gets none.

Touches: biases, of linears and norms.
Trainable: out for each linear, D for each layer norm. Merging: b + d.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minift.interop.module_names import Spelling, Theirs
from minift.interop.peft_format import Format, Problems, Shapes
from minift.model.norm import LayerNorm
from minift.model.transformer import Transformer
from minift.peft.lora import precise
from minift.peft.slots import hang, linears

RATE = 2e-3


@dataclass(frozen=True)
class BitFit:
    """All biases of the blocks, and those of their layer norms."""

    def __str__(self) -> str:
        return "BitFit"


class Change(nn.Module):
    """What hangs on a linear, or on a norm, which is asked first."""

    def __init__(self, module: nn.Linear | LayerNorm):
        super().__init__()
        weight = module.weight
        self.d = nn.Parameter(
            torch.zeros(weight.shape[0], device=weight.device, dtype=precise(weight))
        )

    def forward(self, module: nn.Module, x: Tensor, out: Tensor | None = None) -> Tensor:
        y = module(x) if out is None else out
        return y + self.d.to(y.dtype)

    def merged(self, module: nn.Linear | LayerNorm) -> dict[str, Tensor]:
        """In the change's own precision, rounded once to the base's."""
        bias = self.d if module.bias is None else module.bias.to(self.d.dtype) + self.d
        return {"bias": bias.to(module.weight.dtype)}


def places(model: Transformer) -> Iterator[tuple[str, nn.Linear | LayerNorm]]:
    yield from linears(model)
    for path, module in model.blocks.named_modules(prefix="blocks"):
        if isinstance(module, LayerNorm):
            yield path, module


def attach(model: Transformer, config: BitFit, name: str, seed: int) -> None:
    for path, module in list(places(model)):
        hang(model, path, name, Change(module))


def count(model: Transformer, config: BitFit) -> int:
    """Trainable numbers, in closed form."""
    return sum(module.weight.shape[0] for _, module in places(model))


# ---- files: PEFT's folder, which PEFT itself has no such method for ------------------------------


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
    "BITFIT", read, touched, write, to_file, shapes, fill, idle, options=("target_modules",)
)
