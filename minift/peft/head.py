"""A label head of an adapter's own: it is trained with the adapter, saved with it, and switched.

A model for classification has a head that the base never had, or had for other labels. Each adapter
gets a copy, which is asked instead of the base's: PEFT's `modules_to_save`. A dense layer that the
family keeps inside its classifier (RoBERTa's, DistilBERT's) belongs to the copy.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minift.checkpoints.families import FAMILIES
from minift.checkpoints.mapping import pairs
from minift.errors import one_line
from minift.model.heads import LabelHead
from minift.model.transformer import Transformer
from minift.peft.places import changes, hang

PATH = "head"
USUAL = ("classifier", "score")  # PEFT may name both, whatever the family calls its own


class OwnHead(nn.Module):
    """Asked after the base's head, whose answer it replaces."""

    def __init__(self, head: LabelHead, pooler: nn.Linear | None):
        super().__init__()
        precise = torch.promote_types(head.out.weight.dtype, torch.float32)
        self.head = copy.deepcopy(head).to(precise)
        self.pooler = copy.deepcopy(pooler).to(precise) if pooler is not None else None

    def forward(
        self, head: nn.Module, hidden: Tensor, pooler: nn.Linear | None, out: Tensor
    ) -> Tensor:
        dtype = self.head.out.weight.dtype
        if self.pooler is None and pooler is not None and pooler.weight.dtype != dtype:
            pooler = copy.deepcopy(pooler).to(dtype)
        return self.head(hidden.to(dtype), self.pooler or pooler)

    def merged(self, head: nn.Module) -> dict[str, Tensor]:
        """In the base's precision; `..pooler` is beside the head, not in it."""
        dtype = next(head.parameters()).dtype
        named = dict(self.head.named_parameters())
        if self.pooler is not None:
            named |= {f"..pooler.{leaf}": p for leaf, p in self.pooler.named_parameters()}
        return {name: tensor.detach().to(dtype) for name, tensor in named.items()}


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


def attach(model: Transformer, name: str) -> None:
    """Give the adapter a copy of the model's label head, if it has one."""
    if isinstance(model.head, LabelHead):
        inside = any(ours.startswith("pooler.") for ours in theirs(model))
        hang(model, PATH, name, OwnHead(model.head, model.pooler if inside else None))


def own_head(model: Transformer, name: str) -> OwnHead | None:
    found = {path: change for path, _, change in changes(model, name)}.get(PATH)
    return found if isinstance(found, OwnHead) else None


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


def saved_whole(model: Transformer, data: Mapping[str, Any], problems: list[str]) -> set[str]:
    """The modules of the head that `modules_to_save` promises; anything else is a problem."""
    named = data.get("modules_to_save") or []
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        problems.append(f"modules_to_save is {one_line(named)}, not a list of module names")
        return set()
    own = theirs(model) if isinstance(model.head, LabelHead) else {}
    there = {path.partition(".")[0] for path in own.values()}
    for name in sorted({*named} - there - {*USUAL}):
        problems.append(f"modules_to_save names {one_line(name)}, which is no label head here")
    return there & {*named}


def wanted(
    model: Transformer, promised: Collection[str], found: Mapping[str, Tensor], prefix: str
) -> dict[str, str]:
    """Keys of the file that belong to the head, those `promised` too: key -> the family's name."""
    if not isinstance(model.head, LabelHead):
        return {}
    return {
        f"{prefix}{path}": path
        for path in theirs(model).values()
        if f"{prefix}{path}" in found or path.partition(".")[0] in promised
    }


@torch.no_grad()
def fill(
    model: Transformer, name: str, keys: Mapping[str, str], found: Mapping[str, Tensor]
) -> list[str]:
    """Put the file's head into the copy; -> what is wrong."""
    own, problems = tensors(model, name), []
    for key, path in keys.items():
        if key not in found:
            problems.append(f"missing {one_line(key)}")
        elif path not in own:
            problems.append(f"unexpected {one_line(key)}")
        elif own[path].shape != found[key].shape:
            shape = tuple(own[path].shape)
            problems.append(f"{one_line(key)} is {tuple(found[key].shape)}, not {shape}")
        else:
            own[path].copy_(found[key])
    if keys:
        there = set(keys.values())
        problems += [f"missing {one_line(path)}" for path in own if path not in there]
    return problems
