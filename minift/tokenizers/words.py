"""Word -> ids, worked out once: natural text repeats its words."""

from __future__ import annotations

from collections.abc import Callable

CACHED_WORDS = 1 << 17  # about 30 MB
LONGEST_CACHED = 64  # characters


class Words(dict[str, list[int]]):
    """word -> ids, worked out when first asked for; emptied when full."""

    def __init__(self, work_out: Callable[[str], list[int]]):
        super().__init__()
        self.work_out = work_out

    def __missing__(self, word: str) -> list[int]:
        ids = self.work_out(word)
        if len(word) <= LONGEST_CACHED:
            if len(self) >= CACHED_WORDS:
                self.clear()
            self[word] = ids
        return ids
