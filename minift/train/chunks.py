"""Texts longer than a training row: which row is which part of which text.

    BOS a b c d e f g EOS      at most 4 tokens a row:      BOS a b c | BOS d e f | BOS g EOS

Every token is a target once, as in the whole. Each part begins as the whole does, or where that is
with no BOS, with the token before its first target. The last part alone ends with the end token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def count_of(tokens: int, most: int) -> int:
    """Parts of a text of so many tokens: each has one that is no target of its own."""
    return max(1, -(-(tokens - 1) // (most - 1)))


def part_of(
    ids: Sequence[int] | NDArray[np.int32], k: int, most: int, opens: bool
) -> tuple[list[int], list[int]]:
    """Ids and mask of part k; its first token is no target where it is BOS (`opens`) or again."""
    start = k * (most - 1)
    part = np.asarray(ids[start : start + most]).tolist()
    if k and opens:
        part[0] = int(ids[0])
    return part, [0 if k or opens else 1, *[1] * (len(part) - 1)]


class Chunks:
    """Rows of training by number; `counts` has the parts of the texts that have more than one."""

    def __init__(self, texts: int, counts: Mapping[int, int]):
        self.counts = dict(counts)
        each = np.ones(texts if self.counts else 0, np.int64)
        each[list(self.counts)] = list(self.counts.values())
        self.stops, self.texts = np.cumsum(each), texts

    def __len__(self) -> int:
        return int(self.stops[-1]) if self.counts else self.texts

    def place(self, i: int) -> tuple[int, int]:
        """The text of row i, and which part of it."""
        if not self.counts:
            return i, 0
        text = int(np.searchsorted(self.stops, i, side="right"))
        return text, i - int(self.stops[text]) + self.counts.get(text, 1)
