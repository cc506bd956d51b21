"""(IA)³ in PEFT's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.interop.module_names import HFModule, ModuleNames
from minift.interop.peft_format import Format, Problems, Shapes
from minift.model.transformer import Transformer
from minift.peft.ia3 import IA3, IA3Layer, target_modules


def read(
    data: Mapping[str, Any], module_names: ModuleNames | None, there: Shapes, problems: Problems
) -> IA3:
    """Which side is rescaled follows from the tensors: (1, in) or (out, 1)."""
    if module_names is None:
        return IA3()
    ours = module_names.targets(data, there, problems)
    wide = {path for path, leaves in there.items() if leaves.get("ia3_l", ())[:1] == (1,)}
    within = data.get("feedforward_modules")
    if within not in (None, [], ""):
        said = module_names.named(within, "feedforward_modules", problems)
        wide = wide if said is None else said
    return IA3(
        outputs=tuple(path for path in ours if module_names.by_ours[path].path not in wide),
        inputs=tuple(path for path in ours if module_names.by_ours[path].path in wide),
    )


def touched(model: Transformer, config: IA3) -> list[str]:
    return [path for path, *_ in target_modules(model, config)]


def write(config: IA3, module_names: ModuleNames, found: Mapping[str, nn.Module]) -> dict[str, Any]:
    inputs = [path for path, change in found.items() if getattr(change, "side", "") == "in"]
    return {
        "target_modules": module_names.modules(found),
        "feedforward_modules": module_names.modules(inputs),
        "fan_in_fan_out": any(theirs.transposed for theirs in module_names.of(found)),
        "init_ia3_weights": True,
    }


def to_file(theirs: HFModule, parts: Sequence[nn.Module | None]) -> dict[str, Tensor]:
    """(out, 1), ones for those of ours that are not rescaled; or (1, in)."""
    first = next(part for part in parts if isinstance(part, IA3Layer))
    there = [part if isinstance(part, IA3Layer) else None for part in parts]
    sides = {part.side for part in there if part is not None}
    one_input = all(part is not None and torch.equal(part.l, first.l) for part in there)
    if len(sides) > 1 or ("in" in sides and not one_input):
        raise ConfigError(f"save_adapter: inputs of a part of {theirs.path}, allowed all, as one")
    if first.side == "in":
        return {"ia3_l": first.l.detach()[None]}
    rows = [
        part.l if isinstance(part, IA3Layer) else first.l.new_ones(size)
        for part, size in zip(parts, theirs.outputs, strict=True)
    ]
    return {"ia3_l": theirs.join(rows)[:, None]}


def shapes(theirs: HFModule, config: IA3) -> dict[str, tuple[int, ...]]:
    if theirs.ours[0] in config.inputs:
        return {"ia3_l": (1, theirs.inputs)}
    return {"ia3_l": (sum(theirs.outputs), 1)}


@torch.no_grad()
def fill(theirs: HFModule, parts: Sequence[nn.Module], tensors: Mapping[str, Tensor]) -> None:
    first = parts[0]
    assert isinstance(first, IA3Layer)
    values = tensors["ia3_l"].flatten()
    blocks = [values] if first.side == "in" else theirs.split(values)
    for part, block in zip(parts, blocks, strict=True):
        assert isinstance(part, IA3Layer)
        part.l.copy_(block)


def is_identity(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool((tensor == 1).all()) for tensor in tensors.values())


FILE = Format(
    "IA3",
    read,
    touched,
    write,
    to_file,
    shapes,
    fill,
    is_identity,
    stems=("ia3_l",),
    options=(
        *("target_modules", "feedforward_modules", "exclude_modules", "init_ia3_weights"),
        "layers_to_transform",
    ),
    unsupported={"fan_in_fan_out": (False, True, None)},
)
