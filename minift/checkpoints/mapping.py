"""How a family's files and our configuration and tensors say the same: rows that read both ways.

A `Field` maps a key of config.json (or of GGUF metadata) to a field of ModelConfig, a `Row` maps a
tensor of a file to one or several of ours. `transform` names an invertible one, so that the same
rows, read right to left, write the family's files. `{i}` in a name is the layer, `{p}` the prefix
of the model inside a class with a head, and `{q,k,v}` the three tensors that one of theirs becomes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minift.errors import ConfigError, FormatError, one_line
from minift.model.config import ModelConfig

Values = dict[str, Any]
REQUIRED: object = "(required)"
ABSENT: object = "(absent)"  # compared by identity: no file can say it


@dataclass(frozen=True)
class Field:
    theirs: str
    ours: str
    type: type
    default: object = REQUIRED  # a value, or a function of the values read so far
    words: Mapping[str, str] | None = None  # their word -> ours
    null: object = ABSENT  # what null says, where that is not what leaving the key out says


@dataclass(frozen=True)
class Row:
    theirs: str
    ours: str
    transform: str = "="
    when: str = ""  # conditions on ModelConfig, all of them: "tied", "!tied", "head=lm"


@dataclass(frozen=True)
class Part:
    """A piece of a configuration that is no single field: both directions as functions."""

    read: Callable[[Mapping[str, Any], Values, str], Values]  # (file, values so far, path)
    write: Callable[[ModelConfig], Values]


@dataclass(frozen=True)
class Layout:
    """How one kind of file spells a family."""

    fields: tuple[Field, ...]
    weights: tuple[Row, ...]
    parts: tuple[Part, ...] = ()
    must_be: Mapping[str, object] = field(default_factory=dict)  # keys with one known value
    present: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # ours: if one is there
    tied_copies: Mapping[str, str] = field(
        default_factory=dict
    )  # a tensor that may stand there twice
    # Regular expressions of names: what older or larger files call a tensor, and what it becomes;
    # buffers, which nobody misses; and trained tensors that the model has no use for, by kind.
    renames: Mapping[str, str] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)  # what it is -> the names


@dataclass(frozen=True)
class Family:
    name: str  # config.json's model_type
    heads: Mapping[str, str]  # the class that other programs load -> our head; first: the usual one
    fixed: Mapping[str, object]  # fields of ModelConfig
    folder: Layout
    prefix: str = "model."
    gguf_name: str = ""  # general.architecture; empty: no such files
    gguf: Layout | None = None
    gguf_fixed: Mapping[str, object] = field(default_factory=dict)
    bodies: tuple[str, ...] = ()  # classes of other tasks: loaded without their heads
    # Values in config.json that tell it from a family whose tensors have the same names; and the
    # model_type of a larger model that it is a part of, with the key of that part.
    marks: Mapping[str, object] = field(default_factory=dict)
    within: Mapping[str, str] = field(default_factory=dict)


# ---- transforms ----------------------------------------------------------------------------------


def unpermute(heads: int, x: Tensor) -> Tensor:
    """GGUF keeps a head's channel pairs side by side; we keep them half a head apart."""
    return x.reshape(heads, -1, 2, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def permute(heads: int, x: Tensor) -> Tensor:
    return x.reshape(heads, 2, -1, *x.shape[1:]).transpose(1, 2).reshape(x.shape)


def by_head(config: ModelConfig, x: Tensor) -> list[Tensor]:
    """NeoX keeps q, k and v of each head together: (H * 3 * E, ...) -> three (H * E, ...)."""
    parts = x.reshape(config.heads, 3, -1, *x.shape[1:])
    return [parts[:, n].reshape(-1, *x.shape[1:]) for n in range(3)]


def joined_by_head(config: ModelConfig, xs: Sequence[Tensor]) -> Tensor:
    parts = [x.reshape(config.heads, 1, -1, *x.shape[1:]) for x in xs]
    return torch.cat(parts, 1).reshape(-1, *xs[0].shape[1:])


def split(config: ModelConfig, x: Tensor) -> list[Tensor]:
    """Rows of q, k and v below each other."""
    kv = config.kv_heads * config.head_dim
    return list(x.split((config.heads * config.head_dim, kv, kv)))


Load = Callable[[ModelConfig, Tensor], list[Tensor]]
Save = Callable[[ModelConfig, Sequence[Tensor]], Tensor]


class Transform(NamedTuple):
    """A tensor of the file to ours, and back."""

    load: Load
    save: Save


TRANSFORMS: dict[str, Transform] = {
    "=": Transform(lambda c, x: [x], lambda c, xs: xs[0]),
    "transpose": Transform(lambda c, x: [x.T], lambda c, xs: xs[0].T),
    "q|k|v": Transform(split, lambda c, xs: torch.cat(list(xs))),
    "q|k|v transpose": Transform(lambda c, x: split(c, x.T), lambda c, xs: torch.cat(list(xs)).T),
    "q|k|v per head": Transform(by_head, joined_by_head),
    "q unpermute": Transform(
        lambda c, x: [unpermute(c.heads, x)], lambda c, xs: permute(c.heads, xs[0])
    ),
    "k unpermute": Transform(
        lambda c, x: [unpermute(c.kv_heads, x)], lambda c, xs: permute(c.kv_heads, xs[0])
    ),
    "minus_one": Transform(lambda c, x: [x - 1], lambda c, xs: xs[0] + 1),
}
# Those that move whole rows, and so take rows that are stored as bytes as well.
WHOLE_ROWS = ("=", "q|k|v", "q|k|v per head", "q unpermute", "k unpermute")


# ---- tensors -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """One tensor of a file, and those of ours that it holds."""

    theirs: str
    ours: tuple[str, ...]
    transform: str


def rows(layout: Layout, config: ModelConfig) -> list[Row]:
    """Those whose conditions hold."""
    return [row for row in layout.weights if all(holds(config, c) for c in row.when.split())]


def pairs(layout: Layout, config: ModelConfig, prefix: str) -> Iterator[Pair]:
    """The rows that this model has, for every layer."""
    for row in rows(layout, config):
        for i in range(config.layers if "{i}" in row.theirs else 1):
            ours = row.ours.replace("{i}", str(i))
            yield Pair(fill(row.theirs, prefix, i), tuple(spread(ours)), row.transform)


def fill(name: str, prefix: str, layer: int = 0) -> str:
    return name.replace("{p}", prefix).replace("{i}", str(layer))


def spread(name: str) -> list[str]:
    """a.{b,c}.d -> a.b.d, a.c.d."""
    before, brace, rest = name.partition("{")
    if not brace:
        return [name]
    words, _, after = rest.partition("}")
    return [before + word + after for word in words.split(",")]


def holds(config: ModelConfig, condition: str) -> bool:
    name, equals, value = condition.lstrip("!").partition("=")
    found = getattr(config, name)
    return (found == value if equals else bool(found)) != condition.startswith("!")


# ---- configurations ------------------------------------------------------------------------------


def read_fields(
    table: Sequence[Field], found: Mapping[str, Any], path: str, prefix: str = ""
) -> Values:
    """The values of ModelConfig that `found` spells in the family's words; all problems at once."""
    values: Values = {}
    problems = []
    for row in table:
        key = prefix + row.theirs
        value = found.get(key, ABSENT)
        if value is None and row.null is not ABSENT:
            value = row.null
            if value is REQUIRED:
                problems.append(f"{key} is null")
            else:
                values[row.ours] = value
        elif value is None or value is ABSENT:
            values[row.ours] = row.default
            if row.default is REQUIRED:
                problems.append(f"{key} is missing")
        elif row.words is not None:
            if not isinstance(value, str) or value not in row.words:
                problems.append(f"{key} is {one_line(value)}, not one of {', '.join(row.words)}")
            else:
                values[row.ours] = row.words[value]
        elif type(value) is row.type or (row.type is float and type(value) is int):
            values[row.ours] = float(value) if row.type is float else value  # type: ignore[arg-type]
        else:
            kind = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
            problems.append(f"{key} is {one_line(value)}, not {kind[row.type]}")
    if problems:
        found_text = f"{len(problems)} that do not fit"
        allowed = "the fields of this family"
        raise FormatError(path, "configuration", found_text, allowed, "bad-type", problems)
    for ours, value in values.items():
        if callable(value):
            values[ours] = value(values)
    return values


def write_fields(table: Sequence[Field], config: ModelConfig) -> Values:
    data = {}
    for row in table:
        value = getattr(config, row.ours)
        if row.words is not None:
            value = next(theirs for theirs, ours in row.words.items() if ours == value)
        if value is not None or row.null is not ABSENT:
            data[row.theirs] = value
    return data


def check_fixed(must_be: Mapping[str, object], found: Mapping[str, object], path: str) -> None:
    """Refuse a value that would change the mathematics and that minift does not implement."""
    for key, value in must_be.items():
        if found.get(key, value) != value and found.get(key) is not None:
            raise FormatError(path, key, found[key], repr(value), "out-of-range")


def flags(layout: Layout, names: Container[str], head: str) -> Values:
    """Fields that a file tells by which tensors it has; `names` are without the prefix.

    A choice is a name, and after a space the head that it counts for.
    """
    found = {}
    for ours, choices in layout.present.items():
        told = (choice.partition(" head=") for choice in choices)
        found[ours] = any(fill(name, "") in names for name, _, when in told if when in ("", head))
    return found


def build(values: Values, path: str) -> ModelConfig:
    try:
        return ModelConfig(**values)
    except (ConfigError, OverflowError) as error:
        text = str(error).removeprefix("model config: ")
        raise FormatError(
            path, "configuration", text, "a model that can be", "out-of-range"
        ) from None


def is_buffer(layout: Layout, name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in layout.buffers)


def kind_ignored(layout: Layout, name: str) -> str | None:
    """What a trained tensor that the model has no use for belongs to; None: nothing known."""
    return next((k for k, p in layout.ignored.items() if re.fullmatch(p, name)), None)


def renamed(layout: Layout, name: str) -> str:
    """The name in the family's rows of what some files call `name`."""
    for pattern, ours in layout.renames.items():
        name, count = re.subn(pattern, ours, name)
        if count:
            break
    return name


def finite(value: object, path: str, where: str) -> float:
    """A number of a configuration."""
    if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
        raise FormatError(path, where, value, "a finite number", "bad-type")
    return float(value)  # type: ignore[arg-type]
