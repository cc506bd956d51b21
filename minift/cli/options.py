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

from minift.cli.suggestions import suggest_option
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
    minimum: int | None = None  # smallest number allowed
    element_types: tuple[Any, ...] = (str,)  # of a tuple's elements; two of them: name=value
    method: str = ""  # the only --method that has it
    group: str = ""  # its heading in --help-all
    repeats: bool = False  # a tuple's values may be given one by one, each as written
    split_commas: bool = True  # a tuple that is given once; False: its commas are text
    allow_empty: bool = False  # the empty text is a value
    choices: tuple[str, ...] = ()  # the texts that are allowed; empty: all

    @property
    def option(self) -> str:
        return option_name(self.name)

    @property
    def metavar(self) -> str:
        kinds = {int: "N", float: "X", str: "TEXT", tuple: "A,B" if self.split_commas else "TEXT"}
        if self.type is tuple and len(self.element_types) == 2:
            return f"A={kinds[self.element_types[1]]},..."
        return "" if self.type is bool else kinds[self.type]

    def value(self, texts: Sequence[str]) -> Any:
        """Convert the texts given for the option, one for each time it was given."""
        if "" in texts and not self.allow_empty:
            raise ConfigError(f"{self.option}: found an empty text, allowed a value")
        if self.type is tuple and (len(texts) > 1 or not self.split_commas):
            return tuple(self.element(text) for text in texts)
        (text,) = texts
        if self.type is tuple:
            found = tuple(self.element(word.strip()) for word in text.split(",") if word.strip())
            if not found:
                raise ConfigError(f'{self.option}: found "{text}", allowed {self.metavar}')
            return found
        if self.choices and text not in self.choices:
            near = difflib.get_close_matches(text, self.choices, 1)
            hint = f"; nearest: {near[0]}" if near else ""
            allowed = ", ".join(self.choices)
            raise ConfigError(f'{self.option}: found "{one_line(text)}", allowed {allowed}{hint}')
        value = self.convert(self.type, text)
        if self.minimum is not None and value < self.minimum:
            raise ConfigError(f"{self.option}: found {text}, allowed {self.minimum} or more")
        return value

    def element(self, text: str) -> Any:
        """Convert one element of a tuple: `a`, or `a=1`."""
        if len(self.element_types) == 1:
            return self.convert(self.element_types[0], text)
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f'{self.option}: found "{text}", allowed name=value')
        return name, self.convert(self.element_types[1], value)

    def convert(self, kind: Any, text: str) -> Any:
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
    """Import "module:name": a dataclass, or the table of methods."""
    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)


def dataclasses_of(specs: Sequence[str]) -> Iterator[tuple[str, type]]:
    """The dataclasses that `specs` name, each after its --method; "" if it belongs to no method."""
    for spec in specs:
        found = resolve(spec)
        if isinstance(found, Mapping):
            yield from ((word, kind) for word, (kind, *_) in found.items())
        else:
            yield "", found


def flags_of(specs: Sequence[str]) -> tuple[Flag, ...]:
    """One flag for each field of the dataclasses: its name, type, default and help."""
    flags = []
    for method, kind in dataclasses_of(specs):
        hints = get_type_hints(kind)
        for item in fields(kind):
            hint: Any = hints[item.name]
            element_types: tuple[Any, ...] = (str,)
            if isinstance(hint, UnionType):
                hint = next(a for a in get_args(hint) if a is not type(None))
            if get_origin(hint) is tuple:
                each = get_args(hint)[0]  # tuple[str, ...], tuple[tuple[str, int], ...]
                hint, element_types = tuple, get_args(each) or (each,)
            common = bool(item.metadata.get("common", False))
            text = item.metadata["help"]
            group = method or kind.__name__.removesuffix("Config").lower()
            flag = Flag(
                item.name,
                hint,
                item.default,
                text,
                common,
                element_types=element_types,
                method=method,
                group=group,
            )
            flags.append(flag)
    return tuple(flags)


@dataclass(frozen=True)
class Parsed:
    """The parsed command line: `given` holds what was typed, `values` the defaults too."""

    words: tuple[str, ...]
    given: dict[str, Any]
    values: dict[str, Any]

    def flag(self, name: str) -> Any:
        return self.values[name]

    def need(self, name: str) -> Any:
        """The value of a flag; refused if there is none."""
        if self.values[name] is None:
            raise ConfigError(f"{option_name(name)} is missing")
        return self.values[name]

    def config(self, kind: type[Config]) -> Config:
        """An instance of the dataclass, from the flags named like its fields."""
        names = [item.name for item in fields(kind)]  # type: ignore[arg-type]
        return kind(**{name: self.values[name] for name in names})


def option_name(name: str) -> str:
    """The option of a field: `--max-length` for `max_length`."""
    return "--" + name.replace("_", "-")


def parse(
    words: Sequence[str],
    positional: str | None,
    flags: Sequence[Flag],
    hint: Callable[[str, Mapping[str, Flag]], str] = suggest_option,
) -> Parsed:
    """`--name value`, `--name=value`, `--switch`, `--no-switch`, and at most one plain word.

    Values keep their white space, and those of a repeated option their commas. Words after `--` are
    plain. `hint` suggests a known option for an unknown one.
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
        if flag.type is tuple and flag.split_commas:
            several = option
    by_name = {flag.name: flag for flag in flags}
    given = {name: by_name[name].value(found) for name, found in texts.items()} | switches
    name = (positional or "").strip("[]")
    if len(plain) > (1 if positional else 0):
        extra = one_line(plain[1 if positional else 0])
        quotes = "; a text of several words stands in quotes" if name == "prompt" else ""
        raise ConfigError(f'unexpected word "{extra}"{quotes}')
    return Parsed(tuple(plain), given, {flag.name: flag.default for flag in flags} | given)


def with_option_names(message: str, flags: Sequence[Flag]) -> str:
    """Name the options in a message about fields: "lora_init: found x", "--lora-init: found x"."""
    names = "|".join(sorted((flag.name for flag in flags), key=len, reverse=True))
    return re.sub(rf"(^|; |\n  )({names})(?=: )", lambda m: m[1] + option_name(m[2]), message)
