"""An adapter's own label head in files: PEFT's `modules_to_save`, AdapterHub's model_head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minift.checkpoints.families import FAMILIES
from minift.checkpoints.labels import with_labels
from minift.checkpoints.mapping import pairs
from minift.interop.peft_format import misfits
from minift.model.heads import LabelHead
from minift.model.transformer import Transformer
from minift.peft.head import PATH, own_head
from minift.peft.slots import forget


def theirs(model: Transformer) -> dict[str, str]:
    """The tensors of the label head, and of a pooler inside of it: ours -> the family's."""
    family = FAMILIES[model.config.family]
    found = {}
    for pair in pairs(family.folder, model.config, family.prefix):
        own = pair.ours[0]
        inside = not pair.theirs.startswith(family.prefix)
        if own.startswith("head.") or (own.startswith("pooler.") and inside):
            found[own] = pair.theirs
    return found


def modules(model: Transformer, name: str) -> list[str] | None:
    """`modules_to_save`: the family's modules that are saved whole."""
    if own_head(model, name) is None:
        return None
    return sorted({path.partition(".")[0] for path in theirs(model).values()})


def tensors(model: Transformer, name: str) -> dict[str, nn.Parameter]:
    """The family's names -> the copy's parameters."""
    head = own_head(model, name)
    if head is None:
        return {}
    named = {f"head.{leaf}": p for leaf, p in head.head.named_parameters()}
    if head.pooler is not None:
        named |= {f"pooler.{leaf}": p for leaf, p in head.pooler.named_parameters()}
    return {path: named[ours] for ours, path in theirs(model).items() if ours in named}


def to_file(model: Transformer, name: str, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{path}": p.detach() for path, p in tensors(model, name).items()}


def give(model: Transformer, labels: tuple[str, ...]) -> None:
    """Put a head for these labels on the model itself, whatever head it had."""
    new = with_labels(model, labels)
    model.config, model.head, model.pooler = new.config, new.head, new.pooler
    forget(model, PATH, "head.dense", "head.norm", "head.decoder", "pooler")


def wanted(
    model: Transformer, data: Mapping[str, Any], weights: Mapping[str, str], prefix: str
) -> dict[str, str]:
    """The family's tensors of the head, if any of them is in the file or `modules_to_save`
    promises them: their names -> the file's keys, or what the key would be."""
    if not isinstance(model.head, LabelHead):
        return {}
    promised, names = data.get("modules_to_save") or [], theirs(model)
    there = {p for p in names.values() if p in weights or p.partition(".")[0] in promised}
    # A dense layer may be the base's, which the adapter was trained with and does not hold.
    return {
        path: weights.get(path, f"{prefix}{path}")
        for ours, path in names.items()
        if there and (path in there or not ours.startswith("pooler."))
    }


@torch.no_grad()
def fill(
    model: Transformer, name: str, keys: Mapping[str, str], found: Mapping[str, Tensor]
) -> None:
    """Put the file's head into the copy."""
    own = tensors(model, name)
    for path, key in keys.items():
        own[path].copy_(found[key])


def misfits_of(
    model: Transformer, keys: Mapping[str, str], found: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """What is wrong with the file's head, before anything is made."""
    body, names = (
        dict(model.named_parameters()),
        {path: ours for ours, path in theirs(model).items()},
    )
    shapes = {key: tuple(body[names[path]].shape) for path, key in keys.items()}
    return misfits(shapes, {key: found[key] for key in shapes if key in found})
