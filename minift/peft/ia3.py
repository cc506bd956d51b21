"""(IA)³: learned rescaling of keys, values and the MLP's hidden state.

    k = l_k ⊙ (W_k x + b)      v = l_v ⊙ (W_v x + b)      mlp(x) = W_down (l_ff ⊙ h) + b

Liu et al. 2022, arXiv:2205.05638, section 3.3. Every l starts at 1, so step 0 is exactly the base.
The linears of `outputs` are rescaled after their product (their bias too, as the authors' code and
PEFT do), those of `inputs` before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.model.transformer import Transformer
from minift.peft.about import About
from minift.peft.module_copy import trainable_options
from minift.peft.names import as_tuples, summarize_targets
from minift.peft.slots import insert, members

RATE = 1e-2
ABOUT = About(
    equation="k = l_k ⊙ (W_k x + b)   v = l_v ⊙ (W_v x + b)   mlp(x) = W_down (l_ff ⊙ h) + b",
    paper="arXiv:2205.05638",
    changes="k, v and down",
    formula="out for each of `outputs`, in for each of `inputs`",
    merges=True,
    merging="rows of W and b times l, or columns of W",
    use="few examples, and files of a few kilobytes",
)


@dataclass(frozen=True)
class IA3:
    """Which linears are rescaled, and on which side."""

    outputs: tuple[str, ...] = field(
        default=("k", "v"), metadata={"help": "linears whose outputs are rescaled"}
    )
    inputs: tuple[str, ...] = field(
        default=("down",), metadata={"help": "linears whose inputs are rescaled"}
    )

    def __post_init__(self) -> None:
        as_tuples(self, names=("outputs", "inputs"))
        if not self.outputs and not self.inputs:
            raise ConfigError("outputs, inputs: found none, allowed names of linears")

    def __str__(self) -> str:
        return f"IA3 on {summarize_targets((*self.outputs, *self.inputs))}"


class IA3Layer(nn.Module):
    """What hangs on one linear."""

    def __init__(self, linear: nn.Linear, side: str):
        super().__init__()
        width = linear.out_features if side == "out" else linear.in_features
        self.side = side
        self.l = nn.Parameter(torch.ones(width, **trainable_options(linear)))

    def forward(self, linear: nn.Linear, x: Tensor) -> Tensor:
        if self.side == "in":
            return linear(x * self.l.to(x.dtype))
        return linear(x) * self.l.to(x.dtype)

    def merged(self, linear: nn.Linear) -> dict[str, Tensor]:
        """In the change's own precision, rounded once to the base's."""
        base = linear.weight
        weight = base.to(self.l.dtype)
        if self.side == "in":
            return {"weight": (weight * self.l).to(base.dtype)}
        new = {"weight": (weight * self.l[:, None]).to(base.dtype)}
        if linear.bias is not None:
            new["bias"] = (linear.bias.to(self.l.dtype) * self.l).to(linear.bias.dtype)
        return new


def target_modules(model: Transformer, config: IA3) -> Iterator[tuple[str, nn.Linear, str]]:
    sides: dict[str, str] = {}
    for side, targets in (("out", config.outputs), ("in", config.inputs)):
        for path, linear in members(model, targets):
            if path in sides:
                raise ConfigError(f"inputs: found {path} among outputs too, allowed one side each")
            sides[path] = side
            yield path, linear, side


def attach(model: Transformer, config: IA3, name: str, seed: int) -> None:
    for path, linear, side in list(target_modules(model, config)):
        insert(model, path, name, IA3Layer(linear, side))


def count(model: Transformer, config: IA3) -> int:
    """Trainable numbers, in closed form."""
    return sum(
        linear.out_features if side == "out" else linear.in_features
        for _, linear, side in target_modules(model, config)
    )
