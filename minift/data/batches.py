"""Which rows go together, as a pure function of seed and epoch.

    shuffle the rows -> for each window: cut into batches
    or, of like length: -> for each window: sort by length -> cut into batches -> shuffle those

Rows of like length waste little on padding, and the windows keep each epoch's batches new. But an
update counts as much as any other, however few targets its rows have: where long answers only meet
long ones, they are heard too little (benchmarks/batching.py).

A window's lengths are asked for when it is reached, so that they may be exact (in tokens) without
reading a whole data set first. No generator state has to be saved: batch k of epoch e is the same
in a resumed run, on any machine and with any version of numpy, because the random order is made
here (splitmix64, Steele et al. 2014) and not by a generator whose stream may change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from minift.errors import ConfigError

Indices = NDArray[np.int64]
Lengths = Sequence[int] | NDArray[np.integer]

GAMMA = 0x9E3779B97F4A7C15
WINDOW = 512


def splitmix64(start: int, count: int) -> NDArray[np.uint64]:
    """The first `count` numbers of the generator whose state is `start`."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GAMMA)  # wraps, as it should
    z = steps + np.uint64(start % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shuffled(count: int, *key: int) -> Indices:
    """0 to count - 1 in a random order that depends on `key` alone."""
    state = 0
    for part in key:
        state = int(splitmix64(state ^ (part % 2**64), 1)[0])
    return np.argsort(splitmix64(state, count), kind="stable")


def row_batches(
    rows: int,
    batch_size: int,
    seed: int,
    epoch: int,
    lengths: Callable[[list[int]], Lengths],
    *,
    group_by_length: bool = True,
    window: int = WINDOW,
    start: int = 0,
) -> Iterator[Indices]:
    """Batches of row numbers for one epoch: every row once, `batch_size` a batch, the last fewer.

    `group_by_length`: rows of like length go together. `lengths(indices)` is called once a window,
    of `window` rows rounded up to whole batches, even where it decides nothing. `start`: batches to
    skip; no length is asked for in a window that they fill.
    """
    if batch_size < 1 or window < 1:
        raise ConfigError(f"batch is {batch_size} and window {window}; allowed: 1 or more")
    order = shuffled(rows, seed, epoch, 0)
    per_window = -(-window // batch_size)
    for number, part in enumerate(cut(order, per_window * batch_size)):
        skip = start - number * per_window  # batches of this window
        if skip >= per_window:
            continue
        known = lengths(part.tolist())
        batches = cut(part, batch_size)
        if group_by_length:
            batches = cut(part[np.argsort(np.asarray(known), kind="stable")], batch_size)
            batches = [batches[k] for k in shuffled(len(batches), seed, epoch, 1, number)]
        yield from batches[max(0, skip) :]


def cut(rows: Indices, size: int) -> list[Indices]:
    """Pieces of `size` rows, the last perhaps shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def micro_batches(
    indices: Indices | Sequence[int], lengths: Lengths, max_rows: int, max_tokens: int
) -> list[Indices]:
    """The rows of one optimizer step, cut so that none holds more than `max_tokens` with padding.

    `lengths` is of the whole data set. Longest first: what does not fit into memory fails at once,
    and rows of like length meet. A row longer than `max_tokens` stands alone.
    """
    if max_rows < 1 or max_tokens < 1:
        raise ConfigError(f"max_rows is {max_rows}, max_tokens {max_tokens}; allowed: 1 or more")
    rows = np.asarray(indices, np.int64)
    size = np.asarray(lengths)[rows]
    longest_first = np.argsort(-size, kind="stable")
    rows, size = rows[longest_first], size[longest_first]
    parts: list[Indices] = []
    start = 0
    while start < len(rows):
        fit = max_tokens // max(1, int(size[start]))
        stop = start + max(1, min(max_rows, fit))
        parts.append(rows[start:stop])
        start = stop
    return parts


def packed_batches(lengths: Lengths, max_tokens: int) -> list[Indices]:
    """Rows to stand behind each other without padding, at most `max_tokens` together.

    Longest first, as `micro_batches`; a row longer than `max_tokens` stands alone.
    """
    if max_tokens < 1:
        raise ConfigError(f"max_tokens is {max_tokens}; allowed: 1 or more")
    size = np.asarray(lengths, np.int64)
    order = np.argsort(-size, kind="stable")
    parts: list[list[int]] = []
    full = max_tokens + 1
    for row in order.tolist():
        if full + size[row] > max_tokens:
            parts.append([])
            full = 0
        parts[-1].append(row)
        full += int(size[row])
    return [np.asarray(part, np.int64) for part in parts]


def fixed_batches(
    lengths: Lengths, targets: Lengths, max_tokens: int, max_targets: int
) -> list[list[int]]:
    """Rows for as few batches of a fixed size as the first fit, longest first, finds.

    At most 11/9 of the least possible, and one more (Johnson 1973, for one of the two limits). No
    row may be beyond a limit by itself.
    """
    size, learned = np.asarray(lengths, np.int64), np.asarray(targets, np.int64)
    parts: list[list[int]] = []
    room: list[tuple[int, int]] = []  # tokens and targets that each has left
    for row in np.argsort(-size, kind="stable").tolist():
        n, m = int(size[row]), int(learned[row])
        if n > max_tokens or m > max_targets:
            raise ConfigError(
                f"row {row}: found {n} tokens and {m} targets, allowed {max_tokens} and "
                f"{max_targets}"
            )
        k = next((k for k, free in enumerate(room) if n <= free[0] and m <= free[1]), len(room))
        if k == len(room):
            parts.append([])
            room.append((max_tokens, max_targets))
        parts[k].append(row)
        room[k] = (room[k][0] - n, room[k][1] - m)
    return parts
