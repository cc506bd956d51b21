"""JSON from a file that somebody else made: what the standard forbids is refused, not guessed.

Python's own parser takes duplicate keys (the last wins), NaN, Infinity, numbers too large for a
float, lone surrogates, and fails on deep nesting or very long integers with errors of its own.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minift.errors import FormatError
from minift.formats import placeholder
from minift.storage import read_file

CONFIG_LIMIT = 1 << 20  # bytes of a configuration
DEPTH, NUMBER = 64, 100  # levels; characters of any number
# Of an integer: a size in a header has 20 at most, but a configuration may hold int(1e30), which
# transformers writes for "no limit" into a field that nobody reads.
DIGITS, DIGITS_IN_HEADERS = 64, 20

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read(path: str | os.PathLike[str], *, limit_bytes: int = CONFIG_LIMIT) -> dict[str, Any]:
    """The JSON object in a file; raises FormatError, and nothing else."""
    data = read_file(path, limit_bytes=limit_bytes)
    placeholder.check(path, data, empty="bad-json")
    value = parse(data, path, "JSON", limit_bytes=limit_bytes, digits=DIGITS)
    if type(value) is not dict:
        raise FormatError(path, "JSON", type(value).__name__, "an object", "bad-type")
    return value


def parse(
    data: bytes,
    path: str | os.PathLike[str],
    where: str,
    *,
    limit_bytes: int,
    digits: int = DIGITS_IN_HEADERS,
) -> Any:
    """The value in `data`; raises FormatError, naming `where`, and nothing else."""

    def refuse(found: object, allowed: str, code: str) -> FormatError:
        return FormatError(path, where, found, allowed, code)

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = counts.most_common(1)[0][0]
            raise refuse(f"key {twice!r} twice", "each key once", "dup-key")
        return result

    def as_int(text: str) -> int:
        if len(text.removeprefix("-")) > digits:
            raise refuse(text, f"integers of at most {digits} digits", "limit")
        if text == "-0":  # the reference reader of safetensors takes it for a float
            raise refuse(text, "0", "bad-json")
        return int(text)

    def as_float(text: str) -> float:
        if len(text) > NUMBER:
            raise refuse(text, f"numbers of at most {NUMBER} characters", "limit")
        if math.isinf(value := float(text)):
            raise refuse(text, "numbers that a float can hold", "out-of-range")
        return value

    def constant(text: str) -> None:
        raise refuse(text, "finite numbers", "bad-json")

    if len(data) > limit_bytes:
        raise refuse(f"{len(data):,} bytes", f"at most {limit_bytes:,}", "too-large")
    if _depth(data) > DEPTH:
        raise refuse("deeper nesting", f"at most {DEPTH} levels", "limit")
    try:
        text = data.decode("utf-8")  # here: json.loads(bytes) would take UTF-16 and a BOM
        with uncollected():
            value = json.loads(
                text,
                object_pairs_hook=as_dict,
                parse_int=as_int,
                parse_float=as_float,
                parse_constant=constant,
            )
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at {error.start:,}"
        raise refuse(found, "UTF-8", "bad-utf8") from None
    except json.JSONDecodeError as error:
        found = f"{error.msg} at line {error.lineno:,} column {error.colno:,}"
        raise refuse(found, "JSON", "bad-json") from None
    if _SURROGATE.search(data):
        for text in _texts(value):
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise refuse(ascii(text), "text without lone surrogates", "bad-utf8")
    return value


@contextmanager
def uncollected() -> Iterator[None]:
    """Without the garbage collector: for code that makes a million objects, none of them garbage.

    It would look through all that lives again and again, and take ten times as long as the rest.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _depth(data: bytes) -> int:
    """How deep brackets nest, those in texts left out: Python's parser takes a stack frame each."""
    # Without what is escaped, a text goes from one quote to the next. Elsewhere nothing may be
    # escaped: the parser stops there, and how deep it is behind that does not matter.
    signs = np.frombuffer(data.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    within = np.cumsum(signs == ord('"'), dtype=np.uint8) & 1  # may wrap: only odd or even counts
    steps = np.zeros(256, np.int8)
    steps[[ord("["), ord("{")]], steps[[ord("]"), ord("}")]] = 1, -1
    outside = steps[signs[within == 0]]
    return int(np.cumsum(outside[outside != 0], dtype=np.int32).max(initial=0))


def _texts(value: object) -> list[str]:
    """Every string in a parsed value, keys too."""
    texts, todo = [], [value]
    while todo:
        match todo.pop():
            case str(text):
                texts.append(text)
            case dict(mapping):
                todo += mapping.keys()
                todo += mapping.values()
            case list(items):
                todo += items
    return texts
