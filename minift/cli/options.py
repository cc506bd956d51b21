"""Options: a flag is a dataclass field or a row of the verb's table; nothing is declared twice."""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from textwrap import wrap
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from minift.errors import ConfigError

if TYPE_CHECKING:
    from minift.cli.verbs import Verb

Config = TypeVar("Config")
WIDTH = 100  # characters of a line of help
MANY = 12  # more options than fit a screen: --help shows the common ones


@dataclass(frozen=True)
class Flag:
    """One option. `type` is str, int, float, bool or tuple (comma-separated words)."""

    name: str
    type: type
    default: Any
    help: str
    common: bool = False
    least: int | None = None  # smallest number allowed
    parts: tuple[Any, ...] = (str,)  # types of each word of a tuple; two of them: name=value
    method: str = ""  # the only --method that has it

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def takes(self) -> str:
        kinds = {int: "N", float: "X", str: "TEXT", tuple: "A,B"}
        if self.type is tuple and len(self.parts) == 2:
            return f"A={kinds[self.parts[1]]},..."
        return "" if self.type is bool else kinds[self.type]

    def value(self, text: str) -> Any:
        if self.type is tuple:
            return tuple(self.word(word.strip()) for word in text.split(",") if word.strip())
        value = self.converted(self.type, text)
        if self.least is not None and value < self.least:
            raise ConfigError(f"{self.option}: found {text}, allowed {self.least} or more")
        return value

    def word(self, text: str) -> Any:
        """One of several: `a`, or `a=1`."""
        if len(self.parts) == 1:
            return self.converted(self.parts[0], text)
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f'{self.option}: found "{text}", allowed name=value')
        return name, self.converted(self.parts[1], value)

    def converted(self, kind: Any, text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            allowed = {int: "a whole number", float: "a number"}[kind]
            raise ConfigError(f'{self.option}: found "{text}", allowed {allowed}') from None
        if kind is float and not math.isfinite(value):
            raise ConfigError(f'{self.option}: found "{text}", allowed a finite number')
        return value


def resolve(spec: str) -> Any:
    """What "module:name" means: a dataclass, or the table of the methods."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)


def dataclasses_of(specs: Sequence[str]) -> Iterator[tuple[str, type]]:
    """Every dataclass that these name, each with the word of its method; "" if it is of none."""
    for spec in specs:
        found = resolve(spec)
        if isinstance(found, Mapping):
            yield from ((word, kind) for word, (kind, *_) in found.items())
        else:
            yield "", found


def of(specs: Sequence[str]) -> tuple[Flag, ...]:
    """The flags of dataclasses: names, types, defaults and help are those of their fields."""
    flags = []
    for method, kind in dataclasses_of(specs):
        hints = get_type_hints(kind)
        for item in fields(kind):
            hint: Any = hints[item.name]
            parts: tuple[Any, ...] = (str,)
            if isinstance(hint, UnionType):
                hint = next(a for a in get_args(hint) if a is not type(None))
            if get_origin(hint) is tuple:
                each = get_args(hint)[0]  # tuple[str, ...], tuple[tuple[str, int], ...]
                hint, parts = tuple, get_args(each) or (each,)
            common = bool(item.metadata.get("common", False))
            text = item.metadata["help"]
            flag = Flag(item.name, hint, item.default, text, common, parts=parts, method=method)
            flags.append(flag)
    return tuple(flags)


@dataclass(frozen=True)
class Parsed:
    """What was typed: `given` without the defaults, `values` with them."""

    words: tuple[str, ...]
    given: dict[str, Any]
    values: dict[str, Any]

    def flag(self, name: str) -> Any:
        return self.values[name]

    def need(self, name: str) -> Any:
        """A flag that must have been given."""
        if self.values[name] is None:
            raise ConfigError(f"--{name.replace('_', '-')} is missing")
        return self.values[name]

    def config(self, kind: type[Config]) -> Config:
        """The dataclass, from the flags of its fields."""
        names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: self.values[name] for name in names})


def parse(words: Sequence[str], positional: str | None, flags: Sequence[Flag]) -> Parsed:
    """`--name value`, `--name=value`, `--switch`, `--no-switch`, and at most one plain word."""
    known = {flag.option: flag for flag in flags}
    given: dict[str, Any] = {}
    plain: list[str] = []
    rest = iter(words)
    for word in rest:
        if not word.startswith("--") or word == "--":
            plain.append(word)
            continue
        option, equals, text = word.partition("=")
        off = option.startswith("--no-") and known.get("--" + option[5:])
        flag = known.get(option) or (off if off and off.type is bool else None)
        if flag is None:
            near = difflib.get_close_matches(option, known, 1)
            hint = f"; nearest: {near[0]}" if near else ""
            raise ConfigError(f"unknown option {option}{hint}")
        if flag.type is bool:
            if equals:
                raise ConfigError(f"{option} takes no value")
            given[flag.name] = not (off and option not in known)
            continue
        if not equals:
            text = next(rest, "")
            if (text.startswith("--") and len(text) > 2) or text == "":
                raise ConfigError(f"{option} needs a value")
        given[flag.name] = flag.value(text)
    name = (positional or "").strip("[]")
    if len(plain) > (1 if positional else 0):
        raise ConfigError(f'unexpected word "{plain[1 if positional else 0]}"')
    if positional and not plain and not positional.startswith("["):
        raise ConfigError(f"{name} is missing")
    return Parsed(tuple(plain), given, {flag.name: flag.default for flag in flags} | given)


def verb_help(name: str, verb: Verb, flags: Sequence[Flag], *, everything: bool) -> str:
    """What it does, the options people use, one example; everything with --help-all."""
    shown = [f for f in flags if everything or f.common or len(flags) <= MANY]
    if not any(f.common for f in flags):
        shown = list(flags)
    shown.sort(key=lambda flag: bool(flag.method))  # those of one method only come last
    left = [f"{f.option} {f.takes}".rstrip() for f in shown]
    width = max(map(len, left), default=0)
    below = "\n" + " " * (width + 4)
    lines, method = [], ""
    for spec, flag in zip(left, shown, strict=True):
        if flag.method != method:
            lines.append(f"\n{flag.method}:")
        text = wrap(flag.help + _default(flag), WIDTH - width - 4, break_on_hyphens=False)
        lines.append(f"  {spec:<{width}}  {below.join(text)}")
        method = flag.method
    rows = "\n".join(lines)
    word = f" {verb.positional.upper()}" if verb.positional else ""
    more = (
        "" if len(shown) == len(flags) else f"\n  --help-all lists {len(flags) - len(shown)} more"
    )
    return f"""\
minift {name}: {verb.does}

usage: minift {name}{word} [OPTIONS]

{rows}{more}

example:  {verb.example}"""


def _default(flag: Flag) -> str:
    if flag.default in (None, False, ()) or "default" in flag.help:
        return ""
    shown = ",".join(flag.default) if isinstance(flag.default, tuple) else flag.default
    return f" [{shown}]"
