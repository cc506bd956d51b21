"""The filters and tests of chat templates: `value | name(...)` and `value is name(...)`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from minift.tokenizers.jinja import traced
from minift.tokenizers.jinja.tokens import JinjaError
from minift.tokenizers.jinja.traced import TEMPLATE, Text
from minift.tokenizers.jinja.values import (
    COMPARES,
    METHODS,
    UNDEFINED,
    Lazy,
    Work,
    contains,
    iterate,
    kind_of,
    member,
    number,
    replace,
    sliced,
    text_of,
)


def _default(work: Work, value: Any, default_value: Any = "", boolean: bool = False) -> Any:
    return default_value if value is UNDEFINED or (boolean and not value) else value


def _length(work: Work, value: Any) -> int:
    if value is UNDEFINED:
        return 0
    if not isinstance(value, str | list | tuple | dict):
        raise JinjaError(f"the length of {kind_of(value)}")
    return len(value)


def _first(work: Work, value: Any) -> Any:
    items = iterate(work, value)
    return items[0] if items else UNDEFINED


def _last(work: Work, value: Any) -> Any:
    if isinstance(value, Lazy):
        raise JinjaError("the last of what is no list")
    items = iterate(work, value)
    return items[-1] if items else UNDEFINED


def _reverse(work: Work, value: Any) -> Any:
    if isinstance(value, str):
        return sliced(work, value, None, None, -1)
    return Lazy(reversed(iterate(work, value)))


def _join(work: Work, value: Any, d: Any = "", attribute: Any = None) -> Text:
    items = iterate(work, value)
    if attribute is not None:
        items = [_attribute(work, item, attribute) for item in items]
    return work.join([text_of(item) for item in items], text_of(d))


def _attribute(work: Work, item: Any, path: Any) -> Any:
    """The item of an item, and so on, that "a.b.0" names."""
    for key in [path] if isinstance(path, int) else text_of(path).split("."):
        whole = isinstance(key, str) and key.isdigit() and len(key) < 10
        item = member(work, item, int(key) if whole else key, dotted=False)
    return item


def _map(work: Work, value: Any, *given: Any, **named: Any) -> Lazy:
    items = iterate(work, value) if value else []
    if given:
        return Lazy(filtered(work, given[0], item, *given[1:], **named) for item in items)
    attribute, default = named.pop("attribute"), named.pop("default", None)
    if named:
        raise JinjaError("a map with other arguments than attribute and default")
    found = [_attribute(work, item, attribute) for item in items]
    return Lazy(default if default is not None and one is UNDEFINED else one for one in found)


def _select(keeps: bool, by_attribute: bool) -> Callable[..., Lazy]:
    def select(work: Work, value: Any, *given: Any, **named: Any) -> Lazy:
        def holds(item: Any) -> bool:
            rest = given
            if by_attribute:
                item, rest = _attribute(work, item, given[0]), given[1:]
            return tested(work, rest[0], item, *rest[1:], **named) if rest else bool(item)

        items = iterate(work, value) if value else []
        return Lazy(item for item in items if holds(item) is keeps)

    return select


def _items(work: Work, value: Any) -> Lazy:
    if value is not UNDEFINED and not isinstance(value, dict):
        raise JinjaError(f"the items of {kind_of(value)}")
    return Lazy(value.items() if isinstance(value, dict) else ())


def _int(work: Work, value: Any, default: Any = 0, base: int = 10) -> Any:
    if value is UNDEFINED:
        raise JinjaError("the number of a value that is not defined")
    try:
        return number(int(value, base) if isinstance(value, str) else int(value))
    except (TypeError, ValueError):
        try:
            return number(int(float(value)))
        except (TypeError, ValueError, OverflowError):
            return default


def _float(work: Work, value: Any, default: Any = 0.0) -> Any:
    if value is UNDEFINED:
        raise JinjaError("the number of a value that is not defined")
    try:
        return float(value)
    except (TypeError, ValueError):
        return default


def _round(work: Work, value: Any, precision: int = 0, method: str = "common") -> Any:
    if not isinstance(precision, int) or abs(precision) > 20:
        raise JinjaError("rounding to over 20 digits")
    if method == "common":
        return round(value, precision)
    by = {"ceil": math.ceil, "floor": math.floor}[method]
    return by(value * 10**precision) / 10**precision


def _indent(work: Work, s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> Text:
    if not isinstance(s, str):
        raise JinjaError(f"the indentation of {kind_of(s)}")
    margin = width if isinstance(width, str) else " " * max(0, min(width, work.longest))
    if not isinstance(width, str):
        margin = traced.traced(margin, TEMPLATE)
    newline = traced.traced("\n", TEMPLATE)
    rows = traced.lines(work.join([s, newline]))
    work.spend(len(rows))
    parts: list[str] = [margin] if first else []
    for k, row in enumerate(rows):
        parts += [newline] * (k > 0) + [margin] * (k > 0 and (blank or row != "")) + [row]
    return work.join(parts)


def _tojson(
    work: Work,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> Text:
    """JSON; its characters are not told apart, and a message's if any of them is."""
    texts: list[str] = []
    _collect(work, value, texts, 0)
    if isinstance(indent, int | str) and (indent if isinstance(indent, int) else len(indent)) > 32:
        raise JinjaError("JSON indented by over 32 characters")
    if separators is not None and max(map(len, separators), default=0) > 32:
        raise JinjaError("JSON whose separators have over 32 characters")
    made = json.dumps(
        value,
        ensure_ascii=bool(ensure_ascii),
        indent=indent,
        separators=separators,
        sort_keys=bool(sort_keys),
    )
    return work.join([traced.derived(made, *texts)])


def _collect(work: Work, value: Any, texts: list[str], depth: int) -> None:
    """Charge for a value that is to be JSON, and list its texts."""
    work.spend(1 + depth)
    work.charge(value)
    if isinstance(value, str):
        texts.append(value)
        work.spend(len(value) >> 3)
    elif isinstance(value, list | tuple | dict):
        if depth > 20:
            raise JinjaError("JSON that is nested too deeply")
        for item in value:
            _collect(work, item, texts, depth + 1)
            if isinstance(value, dict):
                _collect(work, value[item], texts, depth + 1)
    elif value is not None and not isinstance(value, bool | int | float):
        raise JinjaError(f"JSON of {kind_of(value)}")


def _by_method(name: str) -> Callable[..., Any]:
    method = METHODS[str][name]
    return lambda work, value, *given: method(work, text_of(value), *given)


def _replace_text(work: Work, s: Any, old: Any, new: Any, count: Any = None) -> Text:
    most = -1 if count is None else count
    return replace(work, text_of(s), text_of(old), text_of(new), most)


FILTERS: dict[str, Callable[..., Any]] = {
    "abs": lambda work, value: number(abs(value)),
    "capitalize": _by_method("capitalize"),
    "count": _length,
    "d": _default,
    "default": _default,
    "first": _first,
    "float": _float,
    "indent": _indent,
    "int": _int,
    "items": _items,
    "join": _join,
    "last": _last,
    "length": _length,
    "list": iterate,
    "lower": _by_method("lower"),
    "map": _map,
    "reject": _select(keeps=False, by_attribute=False),
    "rejectattr": _select(keeps=False, by_attribute=True),
    "replace": _replace_text,
    "reverse": _reverse,
    "round": _round,
    "select": _select(keeps=True, by_attribute=False),
    "selectattr": _select(keeps=True, by_attribute=True),
    "string": lambda work, value: text_of(value),
    "title": lambda work, value: traced.title(text_of(value)),
    "tojson": _tojson,
    "trim": lambda work, value, chars=None: traced.strip(text_of(value), chars),
    "upper": _by_method("upper"),
}


def filtered(work: Work, name: str, value: Any, *given: Any, **named: Any) -> Any:
    """value | name(given, named)."""
    if name not in FILTERS:
        raise JinjaError(f"the filter {str(name)[:40]!r}")
    work.spend(1)
    work.charge(value, *given, *named.values())
    return FILTERS[name](work, value, *given, **named)


# ---- tests


def _numeric(value: Any) -> Any:
    if not isinstance(value, int | float):  # of a text, Python's % would be a format
        raise JinjaError(f"whether {kind_of(value)} is even")
    return value


def _is_cased(method: Callable[[str], bool]) -> Callable[..., bool]:
    return lambda work, value: method(text_of(value))


TESTS: dict[str, Callable[..., bool]] = {
    "boolean": lambda work, value: isinstance(value, bool),
    "callable": lambda work, value: value is UNDEFINED or callable(value),
    "defined": lambda work, value: value is not UNDEFINED,
    "divisibleby": lambda work, value, num: _numeric(value) % _numeric(num) == 0,
    "even": lambda work, value: _numeric(value) % 2 == 0,
    "false": lambda work, value: value is False,
    "float": lambda work, value: isinstance(value, float),
    "in": contains,
    "integer": lambda work, value: isinstance(value, int) and not isinstance(value, bool),
    "iterable": lambda work, value: (
        value is UNDEFINED or isinstance(value, str | list | tuple | dict | Lazy)
    ),
    "lower": _is_cased(str.islower),
    "mapping": lambda work, value: isinstance(value, dict),
    "none": lambda work, value: value is None,
    "number": lambda work, value: isinstance(value, int | float),
    "odd": lambda work, value: _numeric(value) % 2 == 1,
    "sequence": lambda work, value: (
        value is UNDEFINED or isinstance(value, str | list | tuple | dict)
    ),
    "string": lambda work, value: isinstance(value, str),
    "true": lambda work, value: value is True,
    "undefined": lambda work, value: value is UNDEFINED,
    "upper": _is_cased(str.isupper),
    **COMPARES,
    **{
        name: COMPARES[sign]
        for sign, names in {
            "==": ("eq", "equalto"),
            "!=": ("ne",),
            "<": ("lt", "lessthan"),
            "<=": ("le",),
            ">": ("gt", "greaterthan"),
            ">=": ("ge",),
        }.items()
        for name in names
    },
}


def tested(work: Work, name: str, value: Any, *given: Any, **named: Any) -> bool:
    """value is name(given, named)."""
    if name not in TESTS or name == "not in":
        raise JinjaError(f"the test {str(name)[:40]!r}")
    work.spend(1)
    work.charge(value, *given)
    return bool(TESTS[name](work, value, *given, **named))
