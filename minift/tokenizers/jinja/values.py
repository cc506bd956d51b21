"""The values of chat templates: what is written of them, their operators and methods.

Values are text (traced.py), numbers, truth values, None, lists, tuples and dicts, and the few kinds
below; no Python attribute of any of them is ever looked up. Each operation is charged to the
`Work` that a template may cause, by the size of what it reads, so that no template runs away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from minift.tokenizers.jinja import traced
from minift.tokenizers.jinja.tokens import JinjaError
from minift.tokenizers.jinja.traced import TEMPLATE, Text

LARGEST = 1 << 63


class Undefined:
    """The value of a name that nothing was assigned to: no text, no items, false."""

    def __bool__(self) -> bool:
        return False


UNDEFINED = Undefined()


@dataclass
class Namespace:
    """namespace(a=1): names that a loop can assign to for good."""

    names: dict[str, Any]


class Lazy:
    """The items of a filter that Jinja computes when they are asked for: once, and without end."""

    def __init__(self, items: Iterable[Any]):
        self._items = list(items)

    def take(self) -> list[Any]:
        items, self._items = self._items, []
        return items


@dataclass
class Work:
    """How much a template may still do: steps, and characters of any one text."""

    steps: int
    longest: int

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise JinjaError("it does too much")

    def charge(self, *values: Any) -> None:
        """For reading `values` once."""
        for value in values:
            if isinstance(value, str):
                self.spend((len(value) >> 6) + len(traced.runs_of(value)))
            elif isinstance(value, list | tuple | dict):
                self.spend(len(value))

    def join(self, parts: Sequence[str], between: str = "") -> Text:
        """The parts in one text, if it is not too long."""
        size = sum(map(len, parts)) + len(between) * max(0, len(parts) - 1)
        if size > self.longest:
            raise JinjaError(f"it writes a text of over {self.longest:,} characters")
        self.charge(between, *parts)
        self.spend((size >> 6) + len(parts) * len(traced.runs_of(between)))
        return traced.join(parts, between)


def text_of(value: Any) -> str:
    """A value as it is written."""
    if isinstance(value, str):
        return value
    if value is UNDEFINED:
        return traced.traced("", TEMPLATE)
    if value is None or isinstance(value, bool | int | float):
        return traced.traced(str(value), TEMPLATE)
    raise JinjaError("it writes a list, a dict or a function")


def number(value: Any) -> Any:
    """A number that is not too large."""
    if isinstance(value, int) and abs(value) >= LARGEST:
        raise JinjaError("a number over 63 bits")
    return value


def iterate(work: Work, value: Any) -> list[Any]:
    """The items of a value, as a loop sees them."""
    if isinstance(value, Lazy):
        value = value.take()
    work.charge(value)
    if isinstance(value, str):
        work.spend(len(value))
        return list(traced.cuts(value, [(i, i + 1) for i in range(len(value))]))
    if isinstance(value, list | tuple | dict):
        return list(value)
    if value is UNDEFINED:
        return []
    raise JinjaError(f"a loop over {kind_of(value)}")


def kind_of(value: Any) -> str:
    return "a value that is not defined" if value is UNDEFINED else type(value).__name__


# ---- operators


def equal(work: Work, a: Any, b: Any) -> bool:
    """a == b. Items are compared here, not by Python, so that each is charged for."""
    work.spend(1)
    if isinstance(a, str) and isinstance(b, str) and len(a) == len(b):
        work.charge(a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        alike = isinstance(a, list) is isinstance(b, list) and len(a) == len(b)
        return alike and all(equal(work, x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return len(a) == len(b) and all(
            key in b and equal(work, value, b[key]) for key, value in a.items()
        )
    return bool(a == b)


def contains(work: Work, item: Any, holder: Any) -> bool:
    work.charge(item, holder)
    if isinstance(holder, str):
        if not isinstance(item, str):
            raise JinjaError(f"{kind_of(item)} in a text")
        return str.__contains__(holder, item)
    if isinstance(holder, dict):
        return item is not UNDEFINED and _key(item) in holder
    return any(equal(work, item, one) for one in iterate(work, holder))


def _key(value: Any) -> Any:
    """A value that can be a dict's key."""
    if value is None or isinstance(value, str | int | float):
        return value
    raise JinjaError(f"{kind_of(value)} as a key")


def _ordered(sign: str) -> Callable[[Work, Any, Any], bool]:
    def compare(work: Work, a: Any, b: Any) -> bool:
        texts = isinstance(a, str) and isinstance(b, str)
        if not texts and not (isinstance(a, int | float) and isinstance(b, int | float)):
            raise JinjaError(f"{kind_of(a)} {sign} {kind_of(b)}")
        work.charge(a, b)
        less, same = a < b, a == b
        return {"<": less, "<=": less or same, ">": not less and not same, ">=": not less}[sign]

    return compare


COMPARES: dict[str, Callable[[Work, Any, Any], bool]] = {
    "==": equal,
    "!=": lambda work, a, b: not equal(work, a, b),
    "in": contains,
    "not in": lambda work, a, b: not contains(work, a, b),
    **{sign: _ordered(sign) for sign in ("<", "<=", ">", ">=")},
}


def operate(work: Work, sign: str, a: Any, b: Any) -> Any:
    """a SIGN b, for the signs + - ~ * / // %."""
    if sign == "~":
        return work.join([text_of(a), text_of(b)])
    if isinstance(a, int | float) and isinstance(b, int | float):
        return number(_ARITHMETIC[sign](a, b))
    if sign == "+" and isinstance(a, str) and isinstance(b, str):
        return work.join([a, b])
    if sign == "+" and isinstance(a, list) and isinstance(b, list):
        work.charge(a, b)
        return a + b
    if sign == "+" and isinstance(a, tuple) and isinstance(b, tuple):
        work.charge(a, b)
        return a + b
    if sign == "*" and isinstance(a, str | int) and isinstance(b, str | int):
        text, count = (a, b) if isinstance(a, str) else (b, a)
        if isinstance(text, str) and isinstance(count, int):
            if len(text) * count > work.longest:
                raise JinjaError(f"it writes a text of over {work.longest:,} characters")
            work.spend(max(0, count))
            return work.join([text] * count)
    raise JinjaError(f"{kind_of(a)} {sign} {kind_of(b)}")


_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
}


def sliced(work: Work, value: Any, start: Any, stop: Any, step: Any) -> Any:
    if not all(bound is None or isinstance(bound, int) for bound in (start, stop, step)):
        raise JinjaError("a slice whose bounds are no whole numbers")
    places = slice(start, stop, step)
    work.charge(value)
    if isinstance(value, str):
        work.spend(0 if step in (None, 1) else len(value))
        return traced.pick(value, places)
    if isinstance(value, list | tuple):
        return value[places]
    raise JinjaError(f"a slice of {kind_of(value)}")


# ---- methods


def _cased(method: Callable[[str], str]) -> Callable[..., Any]:
    return lambda work, text: traced.like(method(text), text)


def _asked(method: Any) -> Callable[..., Any]:
    return lambda work, text, *given: method(text, *given)


def _stripped(sides: str) -> Callable[..., Any]:
    return lambda work, text, chars=None: traced.strip(text, chars, sides)


def _split(right: bool) -> Callable[..., Any]:
    def split(work: Work, text: str, sep: str | None = None, maxsplit: int = -1) -> list[Text]:
        found = traced.split(text, sep, maxsplit, right=right)
        work.spend(len(found))
        return found

    return split


def _join_all(work: Work, between: str, items: Any) -> Text:
    parts = iterate(work, items)
    if not all(isinstance(part, str) for part in parts):
        raise JinjaError("a join of what is no text")
    return work.join(parts, between)


def replace(work: Work, text: str, old: str, new: str, count: int = -1) -> Text:
    parts = traced.split(text, old, count)
    work.spend(len(parts))
    return work.join(parts, new)


def _without(end: str) -> Callable[..., Any]:
    def remove(work: Work, text: str, part: str) -> Text:
        at, stop = 0, len(text)
        if part and end == "start" and text.startswith(part):
            at = len(part)
        elif part and end == "end" and text.endswith(part):
            stop -= len(part)
        return traced.cut(text, at, stop)

    return remove


def _get(work: Work, value: dict[Any, Any], key: Any, default: Any = None) -> Any:
    return value.get(_key(key), default)


METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    str: {
        "strip": _stripped("both"),
        "lstrip": _stripped("left"),
        "rstrip": _stripped("right"),
        "split": _split(right=False),
        "rsplit": _split(right=True),
        "splitlines": lambda work, text, keepends=False: traced.lines(text, keepends),
        "join": _join_all,
        "replace": replace,
        "removeprefix": _without("start"),
        "removesuffix": _without("end"),
        **{
            name: _cased(method)
            for name, method in {
                "upper": str.upper,
                "lower": str.lower,
                "title": str.title,
                "capitalize": str.capitalize,
            }.items()
        },
        **{
            name: _asked(method)
            for name, method in {
                "startswith": str.startswith,
                "endswith": str.endswith,
                "find": str.find,
                "rfind": str.rfind,
                "index": str.index,
                "count": str.count,
                "isdigit": str.isdigit,
                "isnumeric": str.isnumeric,
                "isalpha": str.isalpha,
                "isalnum": str.isalnum,
                "isspace": str.isspace,
                "isupper": str.isupper,
                "islower": str.islower,
            }.items()
        },
    },
    dict: {
        "get": _get,
        "items": lambda work, value: list(value.items()),
        "keys": lambda work, value: list(value),
        "values": lambda work, value: list(value.values()),
    },
}
# What Python has beyond: a template that asks for it is refused, not told that it is undefined.
_PYTHON = {kind: frozenset(dir(kind)) for kind in (str, dict, list, tuple, int, float, bool)}


def member(work: Work, value: Any, key: Any, *, dotted: bool) -> Any:
    """value.key, where a method goes before an item; value[key], where an item does."""
    if value is UNDEFINED:
        raise JinjaError(f"{text_of(key)[:40]!r} of a value that is not defined")
    work.charge(key)
    if isinstance(value, Namespace):
        return value.names.get(key, UNDEFINED) if isinstance(key, str) else UNDEFINED
    if value is not None and not isinstance(value, str | int | float | list | tuple | dict):
        raise JinjaError(f"{text_of(key)[:40]!r} of a function")
    method: Any = UNDEFINED
    kind: Any = str if isinstance(value, str) else type(value)
    if isinstance(key, str):
        if found := METHODS.get(kind, {}).get(key):
            method = Bound(found, value)
        elif dotted and key in _PYTHON.get(kind, ()):
            raise JinjaError(f"the method {key[:40]!r} of {kind.__name__}")
    if dotted and method is not UNDEFINED:
        return method
    if isinstance(value, dict) and (key is None or isinstance(key, str | int | float)):
        return value.get(key, method)
    if isinstance(value, list | tuple | str) and isinstance(key, int):
        if not -len(value) <= key < len(value):
            return UNDEFINED
        at = key % len(value)
        return traced.cut(value, at, at + 1) if isinstance(value, str) else value[at]
    return method


@dataclass
class Bound:
    """A method with the value that it is one of."""

    method: Callable[..., Any]
    of: Any

    def __call__(self, work: Work, *given: Any, **named: Any) -> Any:
        work.charge(self.of, *given, *named.values())
        return self.method(work, self.of, *given, **named)
