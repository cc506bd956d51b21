"""BitFit: only the biases learn.

    y = W x + b + d        LayerNorm: x̂ ⊙ w + b + d        d starts at zero

Ben Zaken et al. 2021, arXiv:2106.10199, section 3. The paper trains b itself; here d is trained
beside it, which is the same mathematics and leaves the base as it is. A family without biases
(Llama, Gemma) gets zero ones on its linears; an RMS norm has no bias and gets none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minift.model.norm import LayerNorm
from minift.model.transformer import Transformer
from minift.peft.about import About
from minift.peft.module_copy import dtype_of, trainable_options
from minift.peft.slots import insert, linears

RATE = 2e-3
ABOUT = About(
    equation="y = W x + b + d   LayerNorm: x̂ ⊙ w + b + d   d starts at zero",
    paper="arXiv:2106.10199",
    changes="biases",
    formula="out for each linear, D for each layer norm",
    merges=True,
    merging="b + d",
    use="a model that has biases, as BERT, and a change that should stay small",
)


@dataclass(frozen=True)
class BitFit:
    """All biases of the blocks, and those of their layer norms."""

    def __str__(self) -> str:
        return "BitFit"


class BitFitLayer(nn.Module):
    """What hangs on a linear, or on a norm, which is asked first."""

    def __init__(self, module: nn.Linear | LayerNorm):
        super().__init__()
        self.d = nn.Parameter(torch.zeros(width(module), **trainable_options(module)))

    def forward(self, module: nn.Module, x: Tensor, out: Tensor | None = None) -> Tensor:
        y = module(x) if out is None else out
        return y + self.d.to(y.dtype)

    def merged(self, module: nn.Linear | LayerNorm) -> dict[str, Tensor]:
        """In the change's own precision, rounded once to the base's."""
        bias = self.d if module.bias is None else module.bias.to(self.d.dtype) + self.d
        return {"bias": bias.to(dtype_of(module))}


def width(module: nn.Linear | LayerNorm) -> int:
    """Biases of a module."""
    return module.out_features if isinstance(module, nn.Linear) else len(module.weight)


def target_modules(model: Transformer) -> Iterator[tuple[str, nn.Linear | LayerNorm]]:
    yield from linears(model)
    for path, module in model.blocks.named_modules(prefix="blocks"):
        if isinstance(module, LayerNorm):
            yield path, module


def attach(model: Transformer, config: BitFit, name: str, seed: int) -> None:
    for path, module in list(target_modules(model)):
        insert(model, path, name, BitFitLayer(module))


def count(model: Transformer, config: BitFit) -> int:
    """Trainable numbers, in closed form."""
    return sum(width(module) for _, module in target_modules(model))
