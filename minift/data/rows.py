"""Where the rows of a data file are, and the fields of one: JSONL, JSON, CSV and TSV, TXT.

Line ends are found in blocks of the mapped file, so that a line without an end is noticed before it
is read whole. Parsers take the bytes of one row. They are stricter than Python's own: a duplicate
key, half of a surrogate pair, a quote in the middle of a cell and a row with a cell too few are all
errors here. NaN, Infinity and integers beyond 20 digits are kept as the file spells them.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minift.errors import DataError

Row = dict[str, Any]  # the fields of a row as the file has them

LINE_LIMIT = 16 << 20
BLOCK = 1 << 18  # bytes searched for line ends at a time
BLANK = b" \t\r\n"
_IS_BLANK, _IS_LINE_END, _IS_BRACKET = (
    np.isin(np.arange(256), np.frombuffer(these, np.uint8)) for these in (BLANK, b"\r\n", b"{}[],")
)
_DEPTH = np.zeros(256, np.int64)
_DEPTH[list(b"{[")], _DEPTH[list(b"}]")] = 1, -1
_not_blank = re.compile(rb"[^ \t\r\n]").search


class Problem(Exception):
    """What is wrong with a row, before its file and line are added."""

    line: int | None = None  # where that is not the line on which the row starts

    def __init__(self, field: str | None, found: str, allowed: str, *, is_syntax: bool = False):
        self.field, self.found, self.allowed, self.is_syntax = field, found, allowed, is_syntax

    def at(self, path: str | os.PathLike[str], line: int) -> DataError:
        return DataError(path, line, self.field, self.found, self.allowed)


class Number(str):
    """A number of a JSON file as it is spelled there, where int or float would not keep it."""

    @property
    def is_integer(self) -> bool:
        return self.lstrip("-").isdigit()


def shown(value: object) -> str:
    """A value in the words of the file: null, true, 3, "text", a list, an object."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, Number):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return json.dumps(value, ensure_ascii=False)
    return f"a {type(value).__name__}"  # of a Parquet file, or a list given from Python


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


def _document_spans(data: Any, start: int) -> Iterator[Span]:
    """The whole text; over the limit in pieces that end with a paragraph, a line or a character."""
    line = 1
    while start < len(data):
        stop = min(len(data), start + LINE_LIMIT)
        if stop < len(data):
            piece = data[start:stop]
            cut = piece.rfind(b"\n\n") + 2 if b"\n\n" in piece else piece.rfind(b"\n") + 1
            while not cut and stop > start + 1 and data[stop] & 0xC0 == 0x80:
                stop -= 1  # in the middle of a character
            stop = start + cut if cut else stop
        piece = data[start:stop]
        if piece.strip(BLANK):
            yield start, stop, line
        start, line = stop, line + piece.count(b"\n")


def _array_spans(data: Any, start: int) -> Iterator[Span]:
    """The elements of the array that a JSON file is; a file of objects line by line has lines.

    Commas at depth 1 part them. Depth is counted outside of quotes, a block at a time; whether an
    element is sound is left to its parser.
    """
    opening = _not_blank(data, start)
    if opening is None or data[opening.start()] != ord("["):
        yield from _line_spans(data, start)
        return
    first = begin = opening.end()  # of the array, and of the element
    line, counted = 1 + data[start : opening.end()].count(b"\n"), begin
    depth, quoted, escaped = 1, False, False
    for offset in range(begin, len(data), BLOCK):
        block = np.frombuffer(data, np.uint8, min(BLOCK, len(data) - offset), offset)
        is_quote = block == 34
        if escaped:
            is_quote[0] = False
        escaped = _drop_escaped(block, is_quote, escaped)
        inside = (np.cumsum(is_quote) + quoted) % 2 == 1
        marks = np.flatnonzero(_IS_BRACKET[block] & ~inside)
        step = _DEPTH[block[marks]]
        depths = depth + np.cumsum(step)
        ends = ((step == 0) & (depths == 1)) | (depths <= 0)
        for at, left in zip(marks[ends].tolist(), depths[ends].tolist(), strict=True):
            stop = offset + at
            text = _not_blank(data, begin, stop)
            where = text.start() if text else stop
            line, counted = line + data[counted:where].count(b"\n"), where
            if text:
                yield where, stop, line
            elif left or begin != first:  # an empty array has no element
                raise _misplaced(line, "nothing before a comma or bracket", "one JSON object")
            begin = stop + 1
            if not left:
                _check_end(data, stop, line)
                return
        depth = int(depths[-1]) if len(depths) else depth
        quoted = bool(inside[-1])
        if offset + len(block) - begin > LINE_LIMIT:
            yield begin, offset + len(block), line
    raise _misplaced(line, "an array that is never closed; the file may be cut", "a ] at its end")


def _drop_escaped(block: Any, is_quote: Any, escaped: bool) -> bool:
    """Clear the quotes behind an odd number of backslashes; is the byte after the block escaped?"""
    slashes = np.flatnonzero(block == 92)
    if escaped and len(slashes) and slashes[0] == 0:
        slashes = slashes[1:]  # itself escaped
    if not len(slashes):
        return False
    begins = np.concatenate(([True], np.diff(slashes) != 1))
    places = np.arange(len(slashes))
    odd = (places - np.maximum.accumulate(np.where(begins, places, 0))) % 2 == 0
    after = slashes[odd] + 1  # every second of a run escapes what follows
    is_quote[after[after < len(block)]] = False
    return bool(after[-1] == len(block)) if len(after) else False


def _check_end(data: Any, stop: int, line: int) -> None:
    if data[stop] != ord("]"):
        raise _misplaced(line, "} where the array ends", "a ]")
    more = _not_blank(data, stop + 1)
    if more:
        line += data[stop : more.start()].count(b"\n")
        raise _misplaced(line, "text after the array", "one array of rows")


def _misplaced(line: int, found: str, allowed: str) -> Problem:
    problem = Problem(None, found, allowed, is_syntax=True)
    problem.line = line
    return problem


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


def _integer(text: str) -> int | Number:
    return Number(text) if len(text) > 20 else int(text)


def _real(text: str) -> float | Number:
    number = float(text)
    return number if math.isfinite(number) else Number(text)


# json.loads would build this decoder again for each line, and so take twice as long.
_scan = json.JSONDecoder(  # type: ignore[attr-defined]
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_real, parse_constant=Number
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
            # The first may be nameless: pandas writes the row numbers there.
            if not all(cells[1:] or cells) or len(set(cells)) != len(cells):
                found = f"a header with the names {', '.join(map(shown, cells[:20]))}"
                raise Problem(None, found, "different names, none empty")
            self.columns = cells
            return None
        if len(cells) != len(self.columns):
            allowed = f"{len(self.columns)}, as in the header"
            raise Problem(None, f"{len(cells)} cells", allowed, is_syntax=True)
        row = dict(zip(self.columns, cells, strict=True))
        row.pop("", None)
        return row

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


def _element_row(raw: bytes) -> Row | None:
    return _json_row(raw.rstrip(BLANK + b","))  # read again, a row has what stands after it


def _text_row(raw: bytes) -> Row:
    return {"text": _decoded(raw).replace("\r\n", "\n").rstrip()}


# suffix -> where the rows of a file are, and a new parser of one (None: blank or a header)
READERS: dict[str, tuple[Spans, Callable[[], Callable[[bytes], Row | None]]]] = {
    ".jsonl": (_line_spans, lambda: _json_row),
    ".json": (_array_spans, lambda: _element_row),
    ".csv": (_csv_spans, partial(_CsvRow, ",")),
    ".tsv": (_csv_spans, partial(_CsvRow, "\t")),
    ".txt": (_paragraph_spans, lambda: _text_row),
}
DOCUMENTS = {"paragraphs": _paragraph_spans, "file": _document_spans}  # the rows of a .txt
