"""The tokens of a vocabulary as bytes, and those among them that are found in texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence

from minift.errors import EncodeError
from minift.tokenizers.vocabulary import Added

LOOKING_ON = {"single_word", "lstrip", "rstrip"}  # flags that ask for what stands beside a token
WHITE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(c) for c in range(0x2000, 0x200B)
}
# Joiners, and the letters in circles and squares, which Unicode calls alphabetic.
MORE_OF_WORDS = frozenset("\u200c\u200d") | {
    chr(c)
    for first, last in (
        (0x24B6, 0x24E9),
        (0x1F130, 0x1F149),
        (0x1F150, 0x1F169),
        (0x1F170, 0x1F189),
    )
    for c in range(first, last + 1)
}


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
    """Tokens that are found in texts, the leftmost first and of those the longest.

    A `single_word` is found only where no letter, digit or mark of a word touches it; an `lstrip`
    takes the white space before it along, an `rstrip` that behind it.
    """

    def __init__(self, ids: Mapping[str, int], flags: Mapping[str, Sequence[str]] | None = None):
        self.ids = ids
        self._flags = {text: set(own) & LOOKING_ON for text, own in (flags or {}).items()}
        # An alternation tries its names one after the other, and Gemma has thousands: so names are
        # grouped by their first two characters. The longest of a group still goes first.
        groups: dict[str, list[str]] = {}
        for name in sorted(filter(None, ids), key=len, reverse=True):
            groups.setdefault(name[:2], []).append(re.escape(name[2:]))
        rows = sorted(groups.items(), key=lambda row: -len(row[0]))
        names = "|".join(f"{re.escape(start)}(?:{'|'.join(rest)})" for start, rest in rows)
        self._pattern = re.compile(f"({names})") if rows else None

    def cut(self, text: str) -> list[str]:
        """The text in parts, of which every second one is such a token."""
        if self._pattern is None:
            return [text]
        if not any(self._flags.values()):
            return self._pattern.split(text)
        parts: list[str] = []
        done = 0  # where the text goes on after the last token
        for match in self._pattern.finditer(text):
            token, (start, stop) = match[0], match.span()
            flags = self._flags.get(token, ())
            if "single_word" in flags and (
                is_word(text[start - 1 : start]) or is_word(text[stop : stop + 1])
            ):
                continue
            if "lstrip" in flags:
                while start > done and text[start - 1] in WHITE:
                    start -= 1
            if "rstrip" in flags:
                # What was taken along before ends where the white space does.
                stop = done if stop < done else stop
                while stop < len(text) and text[stop] in WHITE:
                    stop += 1
            # TRAP: a token in the white space that one before took along is there all the same.
            parts += [text[done:start], token]
            done = stop
        return [*parts, text[done:]]


def finders(tokens: Mapping[int, Added], normal: Callable[[str], str]) -> tuple[Finder, Finder]:
    """What looks for added tokens in a text as it is, and then in what `normal` makes of it."""
    found: tuple[dict[str, int], dict[str, int]] = {}, {}
    flags: tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]] = {}, {}
    for i, token in tokens.items():
        later = "normalized" in token.flags
        text = normal(token.text) if later else token.text
        if text:
            found[later][text], flags[later][text] = i, token.flags
    return Finder(found[0], flags[0]), Finder(found[1], flags[1])


def is_word(character: str) -> bool:
    r"""Whether it is of a word, as \w of the tokenizers library has it; "" is not."""
    if not character:
        return False
    kind = unicodedata.category(character)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or character in MORE_OF_WORDS
