"""NFC and NFD, Unicode's normal forms, in time that grows with the text and no faster.

Python's own sort the marks behind a letter by insertion, and look through them again for each one
that they compose: of a thousand marks in a row, that is a million steps, and of a megabyte of them
hours. Text that has no long row of marks is left to them; the rest is done here, by the definition:
every character decomposed, the marks between two others sorted by their class without changing the
order of equals, and each then composed with the letter before, unless another mark stands between
that has its class or a higher one. Unicode Standard, section 3.11.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import chain, groupby
from typing import Literal
from unicodedata import combining

LONG = 30  # marks in a row, from which on it is done here


def nfc(text: str) -> str:
    """Composed: a letter and its marks are one character where there is one."""
    return _normalized(text, "NFC", lambda part: _composed(_decomposed(part)))


def nfd(text: str) -> str:
    """Decomposed: each mark stands for itself."""
    return _normalized(text, "NFD", _decomposed)


def _normalized(text: str, form: Literal["NFC", "NFD"], by_hand: Callable[[str], str]) -> str:
    if text.isascii():
        return text
    if len(text) <= LONG or not (rows := _long_rows()).search(text):
        return unicodedata.normalize(form, text)
    # Nothing before an ASCII character is changed by what is behind it, nor the other way round.
    parts: list[str] = []
    for part in re.findall(r"[\x00-\x7f]*[^\x00-\x7f]*", text):
        parts.append(by_hand(part) if rows.search(part) else unicodedata.normalize(form, part))
    return "".join(parts)


@cache
def _long_rows() -> re.Pattern[str]:
    """A row of characters that are marks, or decompose to nothing else."""
    codes = chain(range(0x300, 0x3400), range(0xA000, 0xAC00), range(0xD7A4, 0x20000))
    first = "".join(chr(c) for c in codes if _begins_with_mark(chr(c)))  # none is CJK or Hangul
    return re.compile(f"[{first}]{{{LONG + 1},}}")


def _begins_with_mark(character: str) -> bool:
    if combining(character):
        return True
    parts = unicodedata.decomposition(character)
    return bool(parts) and parts[0] != "<" and combining(chr(int(parts.split()[0], 16))) != 0


def _decomposed(text: str) -> str:
    each = {c: unicodedata.normalize("NFD", c) for c in set(text)}
    parts: list[str] = []
    for _, group in groupby("".join([each[c] for c in text]), lambda c: combining(c) != 0):
        parts += sorted(group, key=combining)  # of letters, whose class is 0, the order stays
    return "".join(parts)


def _composed(text: str) -> str:
    """Decomposed text, composed."""
    done: list[str] = []
    letter, last = -1, 0  # the place of the last letter; the class of the last mark behind it
    known: dict[tuple[str, str], str] = {}
    for c in text:
        kind = combining(c)
        if letter >= 0 and (last < kind or last == 0):
            pair = (done[letter], c)
            if pair not in known:
                known[pair] = unicodedata.normalize("NFC", done[letter] + c)
            if len(known[pair]) == 1:
                done[letter] = known[pair]
                continue
        last = kind
        if kind == 0:
            letter = len(done)
        done.append(c)
    return "".join(done)
