"""The tokens of a vocabulary as bytes, and those among them that are found in texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from minift.errors import EncodeError


class TokenBytes:
    """What each id adds to a text; of the `hidden` ones, the special tokens, nothing is shown."""

    def __init__(self, each: Sequence[bytes], hidden: Iterable[int]):
        self.each, self._shown = list(each), list(each)
        for i in hidden:
            self._shown[i] = b""

    def joined(self, ids: Iterable[int], *, skip_special: bool) -> bytes:
        table = self._shown if skip_special else self.each
        return b"".join([table[self._checked(i)] for i in ids])

    def __getitem__(self, i: int) -> bytes:
        return self.each[self._checked(i)]

    def _checked(self, i: int) -> int:
        if not 0 <= i < len(self.each):
            raise EncodeError(f"found token id {i}, allowed 0 to {len(self.each) - 1:,}")
        return i


class Finder:
    """Tokens that are found in texts, the leftmost first and of those the longest."""

    def __init__(self, ids: Mapping[str, int]):
        self.ids = ids
        names = "|".join(map(re.escape, sorted(ids, key=len, reverse=True)))
        self._pattern = re.compile(f"({names})") if ids else None

    def cut(self, text: str) -> list[str]:
        """The text in parts, of which every second one is such a token."""
        return [text] if self._pattern is None else self._pattern.split(text)
