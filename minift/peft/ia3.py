"""(IA)³: learned rescaling of keys, values and the MLP's hidden state.

    k = l_k ⊙ (W_k x + b)      v = l_v ⊙ (W_v x + b)      mlp(x) = W_down (l_ff ⊙ h) + b

Liu et al. 2022, arXiv:2205.05638, section 3.3. Every l starts at 1, so step 0 is exactly the base.
`outputs` are rescaled after their product (their bias too, as the authors' code and PEFT do),
`inputs` before it.

Touches: k, v and down, or other linears.
Trainable: out for each of `outputs`, in for each of `inputs`. Merging: rows of W and b times l, or
columns of W.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.interop.module_names import Spelling, Theirs
from minift.interop.peft_format import Format, Problems, Shapes
from minift.model.transformer import Transformer
from minift.peft.lora import precise
from minift.peft.names import in_short, tuples_of
from minift.peft.slots import hang, members

RATE = 1e-2


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
        tuples_of(self, names=("outputs", "inputs"))
        if not self.outputs and not self.inputs:
            raise ConfigError("outputs, inputs: found none, allowed names of linears")

    def __str__(self) -> str:
        return f"IA3 on {in_short((*self.outputs, *self.inputs))}"


class Change(nn.Module):
    """What hangs on one linear."""

    def __init__(self, linear: nn.Linear, side: str):
        super().__init__()
        width = linear.out_features if side == "out" else linear.in_features
        self.side = side
        weight = linear.weight
        self.l = nn.Parameter(torch.ones(width, device=weight.device, dtype=precise(weight)))

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


def places(model: Transformer, config: IA3) -> Iterator[tuple[str, nn.Linear, str]]:
    sides: dict[str, str] = {}
    for side, targets in (("out", config.outputs), ("in", config.inputs)):
        for path, linear in members(model, targets):
            if path in sides:
                raise ConfigError(f"inputs: found {path} among outputs too, allowed one side each")
            sides[path] = side
            yield path, linear, side


def attach(model: Transformer, config: IA3, name: str, seed: int) -> None:
    for path, linear, side in list(places(model, config)):
        hang(model, path, name, Change(linear, side))


def count(model: Transformer, config: IA3) -> int:
    """Trainable numbers, in closed form."""
    return sum(
        linear.out_features if side == "out" else linear.in_features
        for _, linear, side in places(model, config)
    )


# ---- PEFT's files --------------------------------------------------------------------------------


def read(
    data: Mapping[str, Any], spelled: Spelling | None, there: Shapes, problems: Problems
) -> IA3:
    """Which side is rescaled follows from the tensors: (1, in) or (out, 1)."""
    if spelled is None:
        return IA3()
    ours = spelled.targets(data, there, problems)
    wide = {path for path, leaves in there.items() if leaves.get("ia3_l", ())[:1] == (1,)}
    within = data.get("feedforward_modules")
    if within not in (None, [], ""):
        said = spelled.named(within, "feedforward_modules", problems)
        wide = wide if said is None else said
    return IA3(
        outputs=tuple(path for path in ours if spelled.by_ours[path].path not in wide),
        inputs=tuple(path for path in ours if spelled.by_ours[path].path in wide),
    )


def touched(model: Transformer, config: IA3) -> list[str]:
    return [path for path, *_ in places(model, config)]


def write(config: IA3, spelled: Spelling, found: Mapping[str, nn.Module]) -> dict[str, Any]:
    inputs = [path for path, change in found.items() if getattr(change, "side", "") == "in"]
    return {
        "target_modules": spelled.modules(found),
        "feedforward_modules": spelled.modules(inputs),
        "fan_in_fan_out": any(theirs.turned for theirs in spelled.of(found)),
        "init_ia3_weights": True,
    }


def to_file(theirs: Theirs, parts: Sequence[nn.Module | None]) -> dict[str, Tensor]:
    """(out, 1), ones for those of ours that are not rescaled; or (1, in)."""
    first = next(part for part in parts if isinstance(part, Change))
    there = [part if isinstance(part, Change) else None for part in parts]
    sides = {part.side for part in there if part is not None}
    one_input = all(part is not None and torch.equal(part.l, first.l) for part in there)
    if len(sides) > 1 or ("in" in sides and not one_input):
        raise ConfigError(f"save_adapter: inputs of a part of {theirs.path}, allowed all, as one")
    if first.side == "in":
        return {"ia3_l": first.l.detach()[None]}
    rows = [
        part.l if isinstance(part, Change) else first.l.new_ones(size)
        for part, size in zip(parts, theirs.outputs, strict=True)
    ]
    return {"ia3_l": theirs.join(rows)[:, None]}


def shapes(theirs: Theirs, config: IA3) -> dict[str, tuple[int, ...]]:
    if theirs.ours[0] in config.inputs:
        return {"ia3_l": (1, theirs.inputs)}
    return {"ia3_l": (sum(theirs.outputs), 1)}


@torch.no_grad()
def fill(theirs: Theirs, parts: Sequence[nn.Module], tensors: Mapping[str, Tensor]) -> None:
    first = parts[0]
    assert isinstance(first, Change)
    values = tensors["ia3_l"].flatten()
    blocks = [values] if first.side == "in" else theirs.split(values)
    for part, block in zip(parts, blocks, strict=True):
        assert isinstance(part, Change)
        part.l.copy_(block)


def idle(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool((tensor == 1).all()) for tensor in tensors.values())


FILE = Format(
    "IA3",
    read,
    touched,
    write,
    to_file,
    shapes,
    fill,
    idle,
    options=(
        *("target_modules", "feedforward_modules", "exclude_modules", "init_ia3_weights"),
        "layers_to_transform",
    ),
    off={"fan_in_fan_out": (False, True, None)},
)
