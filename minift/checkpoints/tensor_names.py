"""A file of weights under the names of its family's rows, whatever its writer called them.

The same model is published as `h.0.ln_1.weight` and as `transformer.h.0.ln_1.weight`, with
`LayerNorm.gamma` for `LayerNorm.weight`, inside of a larger model, or with the head's matrix in
place of the embedding that it is tied to. As transformers does, the prefix is added or removed
once, where the name is then one of the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from minift.checkpoints.families import FAMILIES
from minift.checkpoints.mapping import (
    TRANSFORMS,
    Family,
    Layout,
    fill,
    is_buffer,
    kind_ignored,
    pairs,
    renamed,
    rows,
)
from minift.errors import FormatError, notice, one_line
from minift.model.config import ModelConfig
from minift.model.on_meta import on_meta

SHOWN = 4  # names in one notice


class Entry(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def kind(self) -> str: ...


class TensorFile(Protocol):
    """What a weight file offers, whatever its format."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, Entry]: ...

    def load(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class NamedFile:
    """A weight file under other names."""

    path: Path
    tensors: dict[str, Entry]
    _file: TensorFile = field(repr=False)
    _own: dict[str, str] = field(repr=False)  # our name -> the file's

    def load(self, name: str) -> Tensor:
        return self._file.load(self._own[name])

    def instead(self, name: str, other: str) -> NamedFile:
        """The same with the tensor `other` under the name `name`."""
        own = self._own | {name: self._own[other]}
        return replace(self, tensors=self.tensors | {name: self.tensors[other]}, _own=own)


def named(family: Family, config: ModelConfig, file: TensorFile, prefix: str) -> NamedFile:
    """The file's tensors under the names of the rows, with `prefix`; others keep their names."""
    layout, path = family.folder, file.path
    check_layers(config, file)
    copies = {fill(one, prefix): fill(other, prefix) for one, other in layout.tied_copies.items()}
    rows_have = {pair.theirs for pair in pairs(layout, config, prefix)}
    wanted = rows_have | copies.keys()
    own: dict[str, str] = {}
    for name in file.tensors:
        ours = renamed(layout, name)
        choices = (ours, ours.removeprefix(family.prefix), family.prefix + ours)
        ours = next((choice for choice in choices if choice in wanted), ours)
        if ours in own:
            found = f"{one_line(own[ours])} and {one_line(name)}"
            raise FormatError(path, f'tensor "{one_line(ours)}"', found, "one of them", "dup-key")
        own[ours] = name
    for one, other in copies.items():
        alone = one in own and other not in own and one not in rows_have
        if alone and config.head in ("lm", "mlm"):
            own[other] = own.pop(one)
    return NamedFile(path, {ours: file.tensors[name] for ours, name in own.items()}, file, own)


def file_names(config: ModelConfig) -> dict[str, str]:
    """What a folder of the family calls each of our tensors."""
    family = FAMILIES[config.family]
    prefix = "" if config.head == "none" else family.prefix
    return {
        ours: pair.theirs for pair in pairs(family.folder, config, prefix) for ours in pair.ours
    }


def copies_in(config: ModelConfig, file: TensorFile, layout: Layout, prefix: str) -> dict[str, str]:
    """Tensors of the head that stand in the file once more, under another name: which they are."""
    if config.head not in ("lm", "mlm"):
        return {}
    both = ((fill(one, prefix), fill(other, prefix)) for one, other in layout.tied_copies.items())
    return {one: other for one, other in both if one in file.tensors and other in file.tensors}


def settled(
    config: ModelConfig, file: NamedFile, layout: Layout, prefix: str, path: str
) -> tuple[ModelConfig, NamedFile]:
    """What is tied by the configuration and differs in the file is loaded as the file has it."""
    for one, other in copies_in(config, file, layout, prefix).items():
        where = f'tensor "{one}"'
        if one in {fill(row.theirs, prefix) for row in rows(layout, config)}:
            continue  # not tied
        shape, expected = file.tensors[one].shape, file.tensors[other].shape
        if tuple(shape) != tuple(expected):
            allowed = f"{tuple(expected)}, as {other}"
            raise FormatError(path, where, tuple(shape), allowed, "shape-mismatch")
        if torch.equal(file.load(one), file.load(other)):
            continue
        if config.tied:
            notice(path, f"{one} differs from {other}, which config.json ties it to: loaded untied")
        untied = replace(config, tied=False)
        if one in {fill(row.theirs, prefix) for row in rows(layout, untied)}:
            config = untied
        else:
            file = file.instead(other, one)
    return config, file


def check_tensors(
    config: ModelConfig, file: TensorFile, layout: Layout, prefix: str, path: str
) -> list[str]:
    """The tensors that the model takes: all that its configuration asks for, in its shapes.

    Besides there may be what the family's files are known to hold, and nothing else: buffers, and
    trained tensors, of which a notice says what they are.
    """
    check_layers(config, file)
    shapes = shapes_wanted(config, layout, prefix)
    copies = copies_in(config, file, layout, prefix)
    problems = [f"missing {name}" for name in shapes if name not in file.tensors]
    problems += [
        f"{name} is {tuple(file.tensors[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in file.tensors and tuple(file.tensors[name].shape) != shape
    ]
    ignored: dict[str, list[str]] = {}
    for name in file.tensors:
        if name in shapes or name in copies or is_buffer(layout, name):
            continue
        kind = kind_ignored(layout, name)
        if kind is None:
            problems.append(f"unexpected {name}")
        else:
            ignored.setdefault(kind, []).append(name)
    if problems:
        found = f"{len(problems):,} that do not fit"
        allowed = "exactly those of the configuration"
        raise FormatError(path, "tensors", found, allowed, "shape-mismatch", problems)
    for kind, names in ignored.items():
        shown = ", ".join(names if len(names) <= SHOWN else (*names[:2], "..."))
        number = "1 tensor" if len(names) == 1 else f"{len(names):,} tensors"
        notice(path, f"{number} of the {kind} ignored: {shown}")
    return list(shapes)


def check_layers(config: ModelConfig, file: TensorFile) -> None:
    """Before anything is listed from a number in a configuration."""
    if config.layers > len(file.tensors):
        found = f"{config.layers:,} layers, {len(file.tensors):,} tensors"
        allowed = "layers that the file holds"
        raise FormatError(file.path, "configuration", found, allowed, "shape-mismatch")


def shapes_wanted(config: ModelConfig, layout: Layout, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a file; every layer has those of the first."""
    first = replace(config, layers=1, local=config.local[:1])
    parameters = dict(on_meta(first).named_parameters())
    shapes = {}
    for row, pair in zip(rows(layout, first), pairs(layout, first, prefix), strict=True):
        theirs = TRANSFORMS[pair.transform].save(first, [parameters[name] for name in pair.ours])
        for i in range(config.layers if "{i}" in row.theirs else 1):
            shapes[fill(row.theirs, prefix, i)] = tuple(theirs.shape)
    return shapes
