"""Parquet through pyarrow (the extra `parquet`), by row groups.

Every row is checked once, in order. Later a row is taken from its row group, which stays decoded in
Arrow's columns while there is room: decoding a group for each row of a shuffled epoch would cost
more than training on it.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np

from minift.data.records import OnDisk
from minift.data.rows import Problem, Row
from minift.data.shapes import Shape
from minift.errors import ConfigError, DataError

AT_ONCE = 1024  # rows that are Python objects at a time
ROOM = 1 << 29  # bytes of decoded row groups that are kept


class ParquetRecords(OnDisk):
    """The rows of a Parquet file."""

    def __init__(self, path: str | os.PathLike[str], shape: Shape, limit: int | None = None):
        super().__init__(path, shape)
        try:
            import pyarrow
            from pyarrow import parquet
        except ImportError:
            text = f"{path}: Parquet needs pyarrow: pip install 'minift[parquet]'"
            raise ConfigError(text) from None
        if not os.path.isfile(path):
            missing = "not a plain file" if os.path.exists(path) else "no such file"
            raise ConfigError(f"{path}: {missing}")
        self._groups: dict[int, Any] = {}
        try:
            self._file = parquet.ParquetFile(path)  # no map: a file that is cut would kill us
            sizes = [
                self._file.metadata.row_group(k).num_rows for k in range(self._file.num_row_groups)
            ]
            self._firsts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
            self._count = min(int(self._firsts[-1]), limit or int(self._firsts[-1]))
            self._check()
            with open(path, "rb") as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            self._check_unchanged()
        except (pyarrow.ArrowException, OSError) as error:
            found = str(error).partition("\n")[0]
            raise DataError(path, None, None, found, "a Parquet file") from None

    def _check(self) -> None:
        if not self._count:
            raise DataError(self.path, None, None, "no rows", "at least one row")
        number = 0
        for batch in self._file.iter_batches(AT_ONCE):
            for row in batch.to_pylist():
                try:
                    if number == 0:
                        self._settle(row)
                    self.shape.record(row)
                except Problem as problem:
                    raise self.error(
                        number, problem.field, problem.found, problem.allowed
                    ) from None
                number += 1
                if number == self._count:
                    return

    def __len__(self) -> int:
        return self._count

    def row(self, i: int) -> Row:
        i = range(len(self))[i]
        group = int(np.searchsorted(self._firsts, i, side="right")) - 1
        if group not in self._groups:
            self._check_unchanged()
            table = self._file.read_row_group(group)
            while self._groups and table.nbytes + self._bytes() > ROOM:
                del self._groups[next(iter(self._groups))]
            self._groups[group] = table
        row: Row = self._groups[group].slice(i - int(self._firsts[group]), 1).to_pylist()[0]
        return row

    def _bytes(self) -> int:
        return sum(table.nbytes for table in self._groups.values())

    def error(self, i: int, field: str | None, found: object, allowed: str) -> DataError:
        return DataError(f"{self.path} row {self.where(i)}", None, field, found, allowed)
