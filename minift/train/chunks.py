"""Texts longer than a training row: which row is which part of which text.

    BOS a b c d e f g EOS      at most 4 tokens a row:      BOS a b c | BOS d e f | BOS g EOS

Every token is a target once, as in the whole. Each part begins as the whole does, or where that is
with no BOS, with the token before its first target. The last part alone ends with the end token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def count_of(tokens: int, most: int) -> int:
    """Parts of a text of so many tokens: each has one that is no target of its own."""
    return max(1, -(-(tokens - 1) // (most - 1)))


def part_of(
    ids: Sequence[int], mask: Sequence[int], k: int, most: int, repeat_first: bool
) -> tuple[list[int], list[int]]:
    """Ids and mask of part k; `repeat_first`: the first token is BOS."""
    start = k * (most - 1)
    if k == 0:
        return list(ids[:most]), list(mask[:most])
    first, body = ids[0 if repeat_first else start], slice(start + 1, start + most)
    return [first, *ids[body]], [0, *mask[body]]


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
