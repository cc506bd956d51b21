"""Options: a flag is a dataclass field or stands in a command's row; nothing is declared twice."""

from __future__ import annotations

import difflib
import importlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from minift.cli.suggestions import option_like
from minift.errors import ConfigError, one_line

Config = TypeVar("Config")
OPTION = re.compile(r"(--?[A-Za-z][\w.-]*)(=(.*))?", re.DOTALL)  # "- a list" and "-5" are none


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
    group: str = ""  # its heading in --help-all
    repeats: bool = False  # a tuple's values may be given one by one, each as written
    split: bool = True  # at commas, what is given once; False: never
    empty: bool = False  # the empty text means something
    choices: tuple[str, ...] = ()  # the only texts that are allowed, if any are named

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def takes(self) -> str:
        kinds = {int: "N", float: "X", str: "TEXT", tuple: "A,B" if self.split else "TEXT"}
        if self.type is tuple and len(self.parts) == 2:
            return f"A={kinds[self.parts[1]]},..."
        return "" if self.type is bool else kinds[self.type]

    def value(self, texts: Sequence[str]) -> Any:
        """What the texts mean that stood behind the option, each time it was given."""
        if "" in texts and not self.empty:
            raise ConfigError(f"{self.option}: found an empty text, allowed a value")
        if self.type is tuple and (len(texts) > 1 or not self.split):
            return tuple(self.word(text) for text in texts)
        (text,) = texts
        if self.type is tuple:
            found = tuple(self.word(word.strip()) for word in text.split(",") if word.strip())
            if not found:
                raise ConfigError(f'{self.option}: found "{text}", allowed {self.takes}')
            return found
        if self.choices and text not in self.choices:
            near = difflib.get_close_matches(text, self.choices, 1)
            hint = f"; nearest: {near[0]}" if near else ""
            allowed = ", ".join(self.choices)
            raise ConfigError(f'{self.option}: found "{one_line(text)}", allowed {allowed}{hint}')
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
            raise ConfigError(
                f'{self.option}: found "{one_line(text)}", allowed {allowed}'
            ) from None
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


def flags_of(specs: Sequence[str]) -> tuple[Flag, ...]:
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
            group = method or kind.__name__.removesuffix("Config").lower()
            flag = Flag(
                item.name, hint, item.default, text, common, parts=parts, method=method, group=group
            )
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
            raise ConfigError(f"{option_name(name)} is missing")
        return self.values[name]

    def config(self, kind: type[Config]) -> Config:
        """The dataclass, from the flags of its fields."""
        names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: self.values[name] for name in names})


def option_name(name: str) -> str:
    """A field's name as the option that it is."""
    return "--" + name.replace("_", "-")


def parse(
    words: Sequence[str],
    positional: str | None,
    flags: Sequence[Flag],
    hint: Callable[[str, Mapping[str, Flag]], str] = option_like,
) -> Parsed:
    """`--name value`, `--name=value`, `--switch`, `--no-switch`, and at most one plain word.

    A value is taken as it was written, white space and commas of a repeated option too. What
    follows `--` is plain. `hint` says of an unknown option which one may be meant.
    """
    known = {flag.option: flag for flag in flags}
    texts: dict[str, list[str]] = {}
    switches: dict[str, bool] = {}
    plain: list[str] = []
    several = ""  # the option before, if it takes several words
    rest = iter(words)
    for word in rest:
        match = OPTION.fullmatch(word)
        if word == "--":
            plain += rest
            break
        if match is None:
            plain.append(word)
            if several:
                raise ConfigError(
                    f'unexpected word "{one_line(word)}" after {several}: several are written A,B'
                )
            continue
        option, equals, text = match[1], match[2], match[3]
        if option.startswith("--"):
            option = option.replace("_", "-")
        off = option.startswith("--no-") and known.get("--" + option[5:])
        flag = known.get(option) or (off if off and off.type is bool else None)
        if flag is None:
            raise ConfigError(f"unknown option {one_line(match[1])}{hint(match[1], known)}")
        several = ""
        if flag.type is bool:
            on = option in known
            if equals:
                raise ConfigError(f"{option} takes no value")
            if switches.setdefault(flag.name, on) != on:
                raise ConfigError(f"{flag.option} and {option} contradict each other")
            continue
        if not equals:
            text = next(rest, "--")
            if text == "--" or (text.startswith("--") and OPTION.fullmatch(text)):
                why = "" if text == "--" else f"; {option}={one_line(text)} takes this one"
                raise ConfigError(f"{option} needs a value{why}")
        if flag.name in texts and not flag.repeats:
            raise ConfigError(f"{option} is given twice")
        texts.setdefault(flag.name, []).append(text)
        if flag.type is tuple and flag.split:
            several = option
    by_name = {flag.name: flag for flag in flags}
    given = {name: by_name[name].value(found) for name, found in texts.items()} | switches
    name = (positional or "").strip("[]")
    if len(plain) > (1 if positional else 0):
        extra = one_line(plain[1 if positional else 0])
        quotes = "; a text of several words stands in quotes" if name == "prompt" else ""
        raise ConfigError(f'unexpected word "{extra}"{quotes}')
    return Parsed(tuple(plain), given, {flag.name: flag.default for flag in flags} | given)


def as_typed(message: str, flags: Sequence[Flag]) -> str:
    """A message about fields ("lora_init: found x") about options ("--lora-init: found x")."""
    names = "|".join(sorted((flag.name for flag in flags), key=len, reverse=True))
    return re.sub(rf"(^|; |\n  )({names})(?=: )", lambda m: m[1] + option_name(m[2]), message)
