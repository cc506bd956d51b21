"""Where the rows of a data file are, and the fields of one: JSONL, CSV and TSV, TXT.

Line ends are found in blocks of the mapped file, so that a line without an end is noticed before it
is read whole. Parsers take the bytes of one row. They are stricter than Python's own: a duplicate
key, NaN, half of a surrogate pair, a quote in the middle of a cell and a row with a cell too few
are all errors here.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import numpy as np

from minift.errors import DataError

Row = dict[str, Any]  # the fields of a row as the file has them

LINE_LIMIT = 16 << 20
BLOCK = 1 << 18  # bytes searched for line ends at a time
BLANK = b" \t\r\n"
_IS_BLANK, _IS_LINE_END = (
    np.isin(np.arange(256), np.frombuffer(these, np.uint8)) for these in (BLANK, b"\r\n")
)


class Problem(Exception):
    """What is wrong with a row, before its file and line are added."""

    def __init__(self, field: str | None, found: str, allowed: str, *, is_syntax: bool = False):
        self.field, self.found, self.allowed, self.is_syntax = field, found, allowed, is_syntax

    def at(self, path: str | os.PathLike[str], line: int) -> DataError:
        return DataError(path, line, self.field, self.found, self.allowed)


def shown(value: object) -> str:
    """A value in the words of the file: null, true, 3, "text", a list, an object."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return json.dumps(value, ensure_ascii=False)


Span = tuple[int, int, int]  # start and stop in bytes, first line
Spans = Callable[[Any, int], Iterator[Span]]


def _line_spans(data: Any, start: int) -> Iterator[Span]:
    """Each line that is not blank; one over the limit is given up on before its end is looked for.

    Blank lines are passed over here, a block at a time: a file may have nothing else.
    """
    line, begun = 1, False
    for offset in range(start, len(data), BLOCK):
        block = np.frombuffer(data, np.uint8, min(BLOCK, len(data) - offset), offset)
        stops = np.flatnonzero(block == 10) + 1
        filled, begun = _filled(block, stops, _IS_BLANK, begun)
        yield from _spans(start, line, stops + offset, np.arange(line + 1, line + 1 + len(stops)),
                          filled)  # fmt: skip
        if len(stops):
            start, line = offset + int(stops[-1]), line + len(stops)
        if offset + len(block) - start > LINE_LIMIT:
            break
    if start < len(data):
        yield start, min(offset + len(block), len(data)), line


def _filled(block: Any, stops: Any, is_blank: Any, begun: bool) -> tuple[Any, bool]:
    """Which of the rows that end at `stops` hold more than blank bytes; and whether the rest does.

    `begun`: the first of them had such bytes in the blocks before.
    """
    starts = np.concatenate(([0], stops))
    starts = starts[starts < len(block)]
    found = np.logical_or.reduceat(~is_blank[block], starts)
    if not len(stops):
        return found[:0], begun or bool(found[0])
    found[0] |= begun
    return found[: len(stops)], len(found) > len(stops) and bool(found[-1])


def _spans(start: int, line: int, stops: Any, after: Any, filled: Any) -> Iterator[Span]:
    """Where the filled rows are, of all that end at `stops`; `after`: the line after each."""
    starts = np.concatenate(([start], stops[:-1]))[: len(stops)][filled]
    lines = np.concatenate(([line], after[:-1]))[: len(stops)][filled]
    yield from zip(starts.tolist(), stops[filled].tolist(), lines.tolist(), strict=True)


def _paragraph_spans(data: Any, start: int) -> Iterator[Span]:
    """Runs of lines that are not blank."""
    first = stop = 0
    for begin, end, line in _line_spans(data, start):
        if first and begin != stop:  # blank lines lie between
            yield start, stop, first
            first = 0
        if not first:
            start, first = begin, line
        stop = end
        if stop - start > LINE_LIMIT:
            break
    if first and data[start:stop].strip(BLANK):  # the last line may be blank without an end
        yield start, stop, first


def _csv_spans(data: Any, start: int) -> Iterator[Span]:
    """Rows: a line end counts where the quotes before it are even, as RFC 4180 has them.

    Empty lines are passed over.
    """
    line, quotes, lines, begun = 1, 0, 0, False
    for offset in range(start, len(data), BLOCK):
        block = np.frombuffer(data, np.uint8, min(BLOCK, len(data) - offset), offset)
        marks = np.flatnonzero((block == 10) | (block == 34))
        is_quote = block[marks] == 34
        quotes_before = quotes + np.cumsum(is_quote)
        lines_before = lines + np.cumsum(~is_quote)
        ends = ~is_quote & (quotes_before % 2 == 0)
        stops, after = marks[ends] + 1, lines_before[ends] + 1
        filled, begun = _filled(block, stops, _IS_LINE_END, begun)
        yield from _spans(start, line, stops + offset, after, filled)
        if len(stops):
            start, line = offset + int(stops[-1]), int(after[-1])
        if offset + len(block) - start > LINE_LIMIT:
            break
        if len(marks):
            quotes, lines = int(quotes_before[-1]), int(lines_before[-1])
    if start < len(data):
        yield start, min(offset + len(block), len(data)), line


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        found = f"the byte 0x{raw[error.start]:02x}, {error.start + 1:,} bytes into the row"
        raise Problem(None, found, "UTF-8 text", is_syntax=True) from None


def _unique(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = next(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        raise Problem(twice, "the field twice", "each field once")
    return row


def _integer(text: str) -> int:
    if len(text) > 20:
        raise Problem(None, f"a number of {len(text):,} digits", "at most 20")
    return int(text)


def _real(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise Problem(None, text, "a finite number")
    return number


def _no_constant(text: str) -> NoReturn:
    raise Problem(None, text, "a finite number")


# json.loads would build this decoder again for each line, and so take twice as long.
_scan = json.JSONDecoder(  # type: ignore[attr-defined]
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_real, parse_constant=_no_constant
).scan_once
_surrogate = re.compile(r"\\u[dD][89a-fA-F]").search


def _json_row(raw: bytes) -> Row | None:
    text = _decoded(raw.strip(BLANK))
    if not text:
        return None
    found = ""
    try:
        row, stop = _scan(text, 0)
    except StopIteration as error:
        found = f"no JSON value at character {error.value + 1:,}"
    except json.JSONDecodeError as error:
        found = f"no JSON: {error.msg} at character {error.pos + 1:,}"
    except RecursionError:
        found = "JSON nested too deeply"
    else:
        if stop != len(text):
            found = f"text after the JSON value, at character {stop + 1:,}"
    if found:
        raise Problem(None, found, "one JSON object a line", is_syntax=True)
    if type(row) is not dict:
        raise Problem(None, shown(row), "one JSON object a line")
    if _surrogate(text) is not None:  # most are halves of a pair, which is legal
        for name, value in row.items():
            try:
                json.dumps([name, value], ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                half = f"the lone surrogate U+{ord(error.object[error.start]):04X}"
                raise Problem(name, half, "Unicode text") from None
            except RecursionError:  # the encoder gives up a little earlier than the decoder
                raise Problem(name, "JSON nested too deeply", "one JSON object a line") from None
    return row


class _CsvRow:
    """Fields by the names in the header, which is the first row that it is called with."""

    def __init__(self, delimiter: str):
        self.delimiter = delimiter
        self.columns: list[str] = []
        self.cell = re.compile(
            rf'(?:"((?:[^"]++|"")*+)"|([^"\r\n{delimiter}]*+))({delimiter}|\Z)'
        ).match

    def __call__(self, raw: bytes) -> Row | None:
        text = _decoded(raw.rstrip(b"\r\n"))
        if not text:
            return None
        cells = self.cells(text)
        if not self.columns:
            if not all(cells) or len(set(cells)) != len(cells):
                found = f"a header with the names {', '.join(map(shown, cells[:20]))}"
                raise Problem(None, found, "different names, none empty")
            self.columns = cells
            return None
        if len(cells) != len(self.columns):
            allowed = f"{len(self.columns)}, as in the header"
            raise Problem(None, f"{len(cells)} cells", allowed, is_syntax=True)
        return dict(zip(self.columns, cells, strict=True))

    def cells(self, text: str) -> list[str]:
        # Not the csv module: it reads quotes in the middle of a cell without a word, and its limit
        # on the length of a cell is a global of the process.
        if '"' not in text and "\r" not in text:
            return text.split(self.delimiter)
        cells, at = [], 0
        while match := self.cell(text, at):
            quoted, plain, more = match.groups()
            cells.append(plain if quoted is None else quoted.replace('""', '"'))
            if not more:
                return cells
            at = match.end()
        if text.count('"') % 2:
            raise Problem(None, "a quote that is never closed", 'a " after it', is_syntax=True)
        found = f"a quote or line end inside a cell, near {shown(text[at : at + 20])}"
        raise Problem(None, found, 'cells "in quotes", with each quote in them doubled')


def _text_row(raw: bytes) -> Row:
    return {"text": _decoded(raw).replace("\r\n", "\n").rstrip()}


# suffix -> where the rows of a file are, and a new parser of one (None: blank or a header)
READERS: dict[str, tuple[Spans, Callable[[], Callable[[bytes], Row | None]]]] = {
    ".jsonl": (_line_spans, lambda: _json_row),
    ".csv": (_csv_spans, partial(_CsvRow, ",")),
    ".tsv": (_csv_spans, partial(_CsvRow, "\t")),
    ".txt": (_paragraph_spans, lambda: _text_row),
}
