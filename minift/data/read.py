"""Data sets from JSONL, CSV, TSV and TXT files, every row checked when the file is opened.

    open_records("reviews.csv", template="Review: {text}\\nSentiment:", target="label",
                 labels=("negative", "positive"))[0]
    -> {"prompt": "Review: a gorgeous , witty film .\\nSentiment:", "completion": " positive"}

The file stays on disk. What is kept is where each row starts and on which line, 16 bytes a row, and
a row is parsed again each time it is asked for. All that can be wrong with a row is a DataError
that names file, line and field, and it is raised before anything is trained.

    .jsonl      an object a line, of one kind in the whole file, told by the fields of the first:
                {"messages": [...]}, {"prompt", "completion"} or {"text"}; others are ignored
    .csv .tsv   RFC 4180 with a header: columns prompt and completion, or text
    .txt        paragraphs, separated by blank lines: {"text"} each
"""

from __future__ import annotations

import difflib
import hashlib
import mmap
import os
import re
import stat
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Formatter
from typing import Any, NoReturn, overload

import numpy as np

from minift.data.rows import LINE_LIMIT, READERS, Problem, Row, Span, shown
from minift.errors import ConfigError, DataError, one_line

Record = dict[str, Any]  # one of the three shapes

KINDS = {"messages": ("messages",), "prompt": ("prompt", "completion"), "text": ("text",)}
ROLES = ("system", "user", "assistant")
PAIR = "text_pair"  # beside a template that is the field "text" alone, its second text
NAMED = 100  # columns that an error compares with or lists; a file may have a million


class Records(Sequence[Record]):
    """The rows of one file; made by `open_records`. `kind` is "prompt", "messages" or "text"."""

    kind: str
    sha256: str  # of the bytes of the file

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        template: str | None = None,
        target: str | None = None,
        labels: Sequence[str] | None = None,
        pair: str | None = None,
        limit: int | None = None,
    ):
        self.path = Path(path)
        suffix = self.path.suffix.lower()
        if suffix not in READERS:
            raise ConfigError(f'{path}: unknown file type "{suffix}"; allowed: {" ".join(READERS)}')
        if limit is not None and limit < 1:
            raise ConfigError(f"limit is {limit}; allowed: 1 or more rows")
        self.labels = None if labels is None else _checked_labels(labels)
        self._where = self.path.absolute()  # the current folder may change later
        self._stamp = self._identity()
        self._data = _mapped(self.path)
        spans, new_parser = READERS[suffix]
        self._parse = new_parser()
        self._template, self._target, self._pair = template, target, pair
        self._index(spans(self._data, self._checked_start(suffix)), limit)
        self.sha256 = hashlib.sha256(self._data).hexdigest()
        self._check_unchanged()

    def _index(self, spans: Iterator[Span], limit: int | None) -> None:
        """Check the rows one after the other, and note where each starts."""
        starts, lines = array("q"), array("q")
        stop = 0
        for number, (start, stop, line) in enumerate(spans):
            if stop - start > LINE_LIMIT:
                found, allowed = f"over {LINE_LIMIT >> 20} MiB", "shorter rows, each quote closed"
                raise DataError(self.path, line, None, found, allowed)
            if number % 4096 == 0:
                self._check_unchanged()
            raw = self._data[start:stop]
            try:
                row = self._parse(raw)
                if row is None:
                    continue
                if not starts:
                    self._settle(row)
                self._record(row)
            except Problem as problem:
                if problem.is_syntax and stop == len(self._data) and not raw.endswith(b"\n"):
                    problem.found = f"a last line that may be cut: {problem.found}"
                raise problem.at(self.path, line) from None
            starts.append(start)
            lines.append(line)
            if len(starts) == limit:
                break
        if not starts:
            raise DataError(self.path, None, None, "no rows", "at least one row")
        starts.append(stop)
        self._starts, self._lines = np.array(starts), np.array(lines)

    @property
    def template(self) -> str | None:
        return self._template

    @property
    def target(self) -> str | None:
        return self._target

    @property
    def pair(self) -> str | None:
        """The template of the second text, where the rows have one."""
        return self._pair

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> list[Record]: ...
    def __getitem__(self, i: int | slice) -> Record | list[Record]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self._record(self.row(i))

    def row(self, i: int) -> Row:
        """The fields of row i as they stand in the file, before the template."""
        i = range(len(self))[i]  # negative counts from the end; IndexError beyond
        self._check_unchanged()
        try:
            row = self._parse(self._data[self._starts[i] : self._starts[i + 1]])
        except Problem:  # it was fine when the file was opened
            self._changed()
        assert row is not None
        return row

    def label_index(self, i: int) -> int | None:
        """Which of `labels` row i has; None when there are no labels."""
        if self.labels is None:
            return None
        assert self._target is not None
        return _label(self.row(i), self._target, self.labels)

    def where(self, i: int) -> int:
        """The physical line, counted from 1, on which row i starts."""
        return int(self._lines[range(len(self))[i]])

    def error(self, i: int, field: str | None, found: object, allowed: str) -> DataError:
        """The DataError that names file and line of row i, to be raised by whoever found it."""
        return DataError(self.path, self.where(i), field, found, allowed)

    def _settle(self, first: Row) -> None:
        """Fix the kind of the file by its first row, and check the options against its fields."""
        if self._template is not None or self._target is not None:
            if self._template is None or self._target is None:
                raise ConfigError("template and target go together: the prompt and the answer")
            if self._pair is None and self._template == "{text}" and PAIR in first:
                self._pair = f"{{{PAIR}}}"
            self._fills = [
                parse_template(template, list(first))
                for template in (self._template, self._pair)
                if template is not None
            ]
            if any(name == self._target for fill in self._fills for _, name in fill):
                target = one_line(self._target)
                raise ConfigError(f'the template shows the target "{target}" in the prompt')
            _known_column("target", self._target, list(first))
            self.kind = "prompt"
            return
        if self._pair is not None:
            raise ConfigError("pair is the template of a second text, and needs one of the first")
        kinds = [kind for kind, fields in KINDS.items() if all(name in first for name in fields)]
        if not kinds:
            # Half of a prompt and completion pair is more likely a slip than another kind.
            for name, other in (("prompt", "completion"), ("completion", "prompt")):
                if name in first:
                    raise _missing(other)
            found = f"fields {', '.join(list(first)[:NAMED])}" if first else "no fields"
            allowed = "prompt and completion, messages, or text (or give a template and a target)"
            raise Problem(None, found, allowed)
        self.kind = kinds[0]
        if self.labels is not None:
            if self.kind != "prompt":
                raise ConfigError(f"labels need a target; {self.path} has {self.kind} rows")
            self._target = "completion"

    def _record(self, row: Row) -> Record:
        if self._template is not None:
            prompt, *pair = (_filled(row, fill) for fill in self._fills)
            record = {"prompt": prompt, "completion": self._answer(row, prompt)}
            if pair:
                record["pair"] = pair[0]
            elif PAIR in row and self._template == "{text}":
                raise Problem(PAIR, shown(row[PAIR]), "no such field, as in the first row")
            return record
        if self.kind == "prompt":
            prompt = _text(row, "prompt")
            if self.labels is not None:
                return {"prompt": prompt, "completion": self._answer(row, prompt)}
            return {"prompt": prompt, "completion": _text(row, "completion")}
        if self.kind == "messages":
            return {"messages": _messages(row)}
        return {"text": _text(row, "text")}

    def _answer(self, row: Row, prompt: str) -> str:
        assert self._target is not None
        if self.labels is None:
            answer = _cell(row, self._target)
            if not answer or answer.isspace():
                raise Problem(self._target, "an empty text", "an answer")
        else:
            answer = self.labels[_label(row, self._target, self.labels)]
        return answer if prompt[-1:].isspace() or answer[0].isspace() else " " + answer

    def _checked_start(self, suffix: str) -> int:
        """Where the text begins: after the byte order mark that spreadsheets put before a CSV."""
        head = bytes(self._data[:4])
        allowed = "UTF-8 text"
        if not head:
            raise DataError(self.path, None, None, "an empty file", "at least one row")
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head[:2]:
            raise DataError(self.path, 1, None, "UTF-16", allowed)
        if head[:3] != b"\xef\xbb\xbf":
            return 0
        if suffix not in (".csv", ".tsv"):
            raise DataError(self.path, 1, None, "a byte order mark", f"{allowed} without one")
        return 3

    def _identity(self) -> tuple[int, int, int]:
        try:
            now = os.stat(self._where)
        except (OSError, ValueError):
            return (0, 0, 0)
        return now.st_ino, now.st_size, now.st_mtime_ns

    def _check_unchanged(self) -> None:
        # TRAP: reading a map beyond the end of a file that was cut kills the process (SIGBUS).
        if self._identity() != self._stamp:
            self._changed()

    def _changed(self) -> NoReturn:
        raise DataError(
            self.path, None, None, "that it changed while it was in use", "a file left alone"
        )


def open_records(
    path: str | os.PathLike[str],
    *,
    template: str | None = None,
    target: str | None = None,
    labels: Sequence[str] | None = None,
    pair: str | None = None,
    limit: int | None = None,
) -> Records:
    """Open a data set, check each of its rows, and keep only an index of it.

    `template` ("Review: {text}\\nSentiment:") makes the prompt of a row from its fields, and
    `target` names the field of the answer. With `labels` that field holds one of these words or
    its number (0, 1, ...), without them free text. An answer made so gets one leading space, unless
    the prompt ends in white space or the answer starts with it; prompts and completions that the
    file itself has stay as they are. `labels` without a template hold for the field "completion".
    `pair` is the template of a second text, for classifiers of two; beside the template "{text}" a
    field "text_pair" is it without being named.
    `limit` reads and checks only the first rows.
    """
    return Records(path, template=template, target=target, labels=labels, pair=pair, limit=limit)


def unescape_template(text: str) -> str:
    r"""A text as it was typed in a shell: `\n` is a new line, `\t` a tab, `\\` a backslash."""
    marks = {"\\n": "\n", "\\t": "\t", "\\\\": "\\"}
    return re.sub(r"\\[nt\\]", lambda found: marks[found[0]], text)


def parse_template(template: str, columns: Sequence[str]) -> list[tuple[str, str | None]]:
    """The pieces of a template: (text, None) or ("", column). `{{` and `}}` are literal braces.

    >>> parse_template("{{x}} {text}:", ["text"])
    [('{x} ', None), ('', 'text'), (':', None)]
    """
    pieces: list[tuple[str, str | None]] = []
    try:
        # Only parsed, never formatted: a name is looked up whole, so "a.b" reads no attribute.
        for text, name, form, conversion in Formatter().parse(template):
            if text and pieces and pieces[-1][1] is None:
                text = pieces.pop()[0] + text  # the parser ends a piece at each literal brace
            if text:
                pieces.append((text, None))
            if name is None:
                continue
            if form or conversion:
                raise ConfigError(f"template field {{{name}}} has a format; allowed: {{{name}}}")
            _known_column("template field", name, columns)
            pieces.append(("", name))
    except ValueError as problem:
        if isinstance(problem, ConfigError):
            raise
        raise ConfigError(f"template {template!r}: {problem}") from None
    if all(name is None for _, name in pieces):
        hint = one_line(", ".join(columns[:NAMED]), 300)
        raise ConfigError(f"template {template!r} names no column; columns: {hint}")
    return pieces


def _known_column(what: str, name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        shown_columns = columns[:NAMED]
        near = difflib.get_close_matches(name, shown_columns, n=1, cutoff=0.5)
        hint = f"nearest: {near[0]}" if near else f"columns: {', '.join(shown_columns)}"
        raise ConfigError(f'{what} "{name}" is no column; {one_line(hint, 300)}')


def _checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not all(type(word) is str and word.strip() for word in labels):
        raise ConfigError(f"labels are {labels!r}; allowed: a list of words")
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ConfigError(f"labels are {', '.join(labels)}; allowed: two or more different words")
    return tuple(labels)


def _mapped(path: Path) -> mmap.mmap | bytes:
    """The bytes of a file, read-only: unlike a private map, it may be larger than the memory."""
    allowed = "an existing, readable file"
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise DataError(path, None, None, "not a plain file", allowed)
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
    except DataError:
        raise
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the path
        found = getattr(problem, "strerror", None) or str(problem)
        raise DataError(path, None, None, found, allowed) from None


# ---- one row -------------------------------------------------------------------------------------


def _missing(field: str) -> Problem:
    return Problem(field, "no such field", "text, in every row")


def _text(row: Row, field: str) -> str:
    text = row.get(field)
    if type(text) is not str:
        raise Problem(field, shown(text), "text") if field in row else _missing(field)
    if not text or text.isspace():
        raise Problem(field, "an empty text", "text")
    return text


def _filled(row: Row, fill: Sequence[tuple[str, str | None]]) -> str:
    """A template with the fields of a row."""
    shown_fields = {name: _cell(row, name) for _, name in fill if name is not None}
    if not any(text.strip() for text in shown_fields.values()):
        raise Problem(next(iter(shown_fields)), "an empty text", "text")
    return "".join(text if name is None else shown_fields[name] for text, name in fill)


def _cell(row: Row, field: str) -> str:
    """A field as a template shows it: text or a number; it may be empty."""
    value = row.get(field)
    if type(value) is str:
        return value
    if type(value) is int or type(value) is float:
        return str(value)
    raise Problem(field, shown(value), "text") if field in row else _missing(field)


def _label(row: Row, field: str, labels: tuple[str, ...]) -> int:
    value = _cell(row, field).strip()
    if value in labels:
        return labels.index(value)
    if value.isascii() and value.isdigit() and int(value[:9]) < len(labels) and len(value) < 9:
        return int(value)
    allowed = f"{', '.join(labels)} or 0 to {len(labels) - 1}"
    raise Problem(field, shown(row[field]), allowed)


def _messages(row: Row) -> list[dict[str, str]]:
    messages = row.get("messages")
    if type(messages) is not list:
        if "messages" not in row:
            raise _missing("messages")
        raise Problem("messages", shown(messages), "a list of messages")
    checked = []
    for k, message in enumerate(messages):
        field = f"messages[{k}]"
        if type(message) is not dict:
            raise Problem(field, shown(message), 'an object with "role" and "content"')
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            found = shown(role) if "role" in message else "no such field"
            raise Problem(f"{field}.role", found, ", ".join(ROLES))
        if type(content) is not str:
            found = shown(content) if "content" in message else "no such field"
            raise Problem(f"{field}.content", found, "text")
        if role != "system" and not content.strip():
            raise Problem(f"{field}.content", "an empty text", "text")
        checked.append({"role": role, "content": content})
    if not any(message["role"] == "assistant" for message in checked):
        raise Problem("messages", "no assistant message", "at least one")
    return checked
