"""Data sets, every row checked when they are opened: the rows of a text file, or of a list.

A file stays on disk. What is kept is where each row starts and on which line, 16 bytes a row, and a
row is parsed again each time it is asked for. All that can be wrong with a row is a DataError that
names file, line and field, and it is raised before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, overload

import numpy as np

from minift.data.rows import DOCUMENTS, LINE_LIMIT, READERS, Problem, Row, Span, shown
from minift.data.shapes import Record, Shape
from minift.errors import ConfigError, DataError, notice


class Records(Sequence[Record]):
    """Checked rows; made by `open_records`. `kind` is "prompt", "messages" or "text"."""

    path: Path
    sha256: str  # of the bytes of the file, or of the rows

    def __init__(self, path: str | os.PathLike[str], shape: Shape):
        self.path, self.shape = Path(path), shape
        self.labels, self.template = shape.labels, shape.template

    # Known when the first row has been seen.
    @property
    def kind(self) -> str:
        return self.shape.kind

    @property
    def is_mixed(self) -> bool:
        """Whether each row tells its own kind; else they are all of one."""
        return self.shape.is_mixed

    @property
    def target(self) -> str | None:
        return self.shape.target

    @property
    def pair(self) -> str | None:
        """The template of the second text, where the rows have one."""
        return self.shape.pair

    def __len__(self) -> int:
        raise NotImplementedError

    def row(self, i: int) -> Row:
        """The fields of row i as they stand in the data, before the template."""
        raise NotImplementedError

    def where(self, i: int) -> int:
        """The physical line, from 1, on which row i starts; or which row of a list it is."""
        return range(len(self))[i] + 1

    def place(self, i: int) -> str:
        """Where row i is, in words."""
        return f"row {self.where(i):,}"

    def error(self, i: int, field: str | None, found: object, allowed: str) -> DataError:
        """The DataError that says where row i is, to be raised by whoever found it."""
        return DataError(self.path, self.where(i), field, found, allowed)

    def label_index(self, i: int) -> int | None:
        """Which of `labels` row i has; None when there are no labels."""
        return None if self.labels is None else self.shape.label_index(self.row(i))

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> list[Record]: ...
    def __getitem__(self, i: int | slice) -> Record | list[Record]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        return self.shape.record(self.row(i))

    def _settle(self, first: Row) -> None:
        self.shape.settle(first)
        unread = self.shape.unread_answer(first)
        if unread is not None:
            flags = f"--template '{{text}}' --target {unread}"
            notice(
                self.path, f"reads the column text alone, not {unread}; {flags} makes it the answer"
            )


class OnDisk(Records):
    """The rows of a file, which must stay as it is while they are in use."""

    def __init__(self, path: str | os.PathLike[str], shape: Shape):
        super().__init__(path, shape)
        self._where = self.path.absolute()  # the current folder may change later
        self._stamp = self._identity()

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


class FileRecords(OnDisk):
    """The rows of a text file."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        shape: Shape,
        limit: int | None = None,
        documents: str = "paragraphs",
    ):
        super().__init__(path, shape)
        suffix = self.path.suffix.lower()
        spans, new_parser = READERS[suffix]
        if suffix == ".txt":
            spans = DOCUMENTS[documents]
        self._data = _mapped(self.path)
        self._parse = new_parser()
        self._index(spans(self._data, self._checked_start()), limit)
        self.sha256 = hashlib.sha256(self._data).hexdigest()
        self._check_unchanged()

    def _index(self, spans: Iterator[Span], limit: int | None) -> None:
        """Check the rows one after the other, and note where each starts."""
        starts, lines = array("q"), array("q")
        stop, line, raw = 0, 1, b""
        try:
            for number, (start, stop, line) in enumerate(spans):
                if stop - start > LINE_LIMIT:
                    found = f"over {LINE_LIMIT >> 20} MiB"
                    raise Problem(None, found, "shorter rows, each quote closed")
                if number % 4096 == 0:
                    self._check_unchanged()
                raw = self._data[start:stop]
                row = self._parse(raw)
                if row is None:
                    continue
                if not starts:
                    self._settle(row)
                self.shape.record(row)
                starts.append(start)
                lines.append(line)
                if len(starts) == limit:
                    break
        except Problem as problem:
            is_last = stop == len(self._data) and not raw.endswith(b"\n")
            if problem.is_syntax and is_last and problem.line is None:
                problem.found = f"a last line that may be cut: {problem.found}"
            raise problem.at(self.path, problem.line or line) from None
        if not starts:
            raise DataError(self.path, None, None, "no rows", "at least one row")
        starts.append(stop)
        self._starts, self._lines = np.array(starts), np.array(lines)

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, i: int) -> Row:
        i = range(len(self))[i]  # negative counts from the end; IndexError beyond
        self._check_unchanged()
        try:
            row = self._parse(self._data[self._starts[i] : self._starts[i + 1]])
        except Problem:  # it was fine when the file was opened
            self._changed()
        assert row is not None
        return row

    def where(self, i: int) -> int:
        return int(self._lines[range(len(self))[i]])

    def place(self, i: int) -> str:
        return f"line {self.where(i):,}"

    def _checked_start(self) -> int:
        """Where the text begins: after the byte order mark that Windows puts before it."""
        head = bytes(self._data[:4])
        allowed = "UTF-8 text"
        if not head:
            raise DataError(self.path, None, None, "an empty file", "at least one row")
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head[:2]:
            raise DataError(self.path, 1, None, "UTF-16", allowed)
        return 3 if head[:3] == b"\xef\xbb\xbf" else 0


class ListRecords(Records):
    """Rows given from Python: any sequence of mappings, or a data set made in memory."""

    def __init__(
        self,
        rows: Sequence[Mapping[str, object]],
        shape: Shape,
        limit: int | None = None,
        path: str | os.PathLike[str] = "a list of rows",
    ):
        super().__init__(path, shape)
        self._rows, self._count = rows, min(len(rows), limit or len(rows))
        digest = hashlib.sha256()
        for i in range(len(self)):
            try:
                row = self.row(i)
                if i == 0:
                    self._settle(row)
                record = shape.record(row)
            except Problem as problem:
                raise self.error(i, problem.field, problem.found, problem.allowed) from None
            digest.update(json.dumps(record).encode())
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return self._count

    def row(self, i: int) -> Row:
        row: object = self._rows[range(len(self))[i]]
        if not isinstance(row, Mapping):
            raise Problem(None, shown(row), "a mapping of fields")
        # numpy's numbers are what tables hold.
        return {k: v.item() if isinstance(v, np.generic) else v for k, v in row.items()}

    def error(self, i: int, field: str | None, found: object, allowed: str) -> DataError:
        return DataError(f"row {self.where(i)}", None, field, found, allowed)


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
        if isinstance(problem, FileNotFoundError):
            raise ConfigError(f"{path}: no such file") from None
        raise DataError(path, None, None, found, allowed) from None
