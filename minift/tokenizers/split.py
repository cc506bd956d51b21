r"""Text to words, the step before byte-level BPE: four known patterns, never one from a file.

The published patterns ask for \p{L}, \p{N} and \s, which the standard library's `re` does not
have. Only the *kind* of a character matters to them, so the text is first rewritten in ASCII, each
character beyond it by one of the same kind (letter a, number 0, space TAB, anything else !), and
the pattern, in plain ASCII classes, cuts this shadow. The cuts are then those of the text.

Kinds are those of Unicode 16, as in the tokenizers library: Python 3.11 knows Unicode 14, so the
letters and numbers that came later are listed here. A Python with a still newer Unicode may see
letters where the library sees none; no known vocabulary has a token with such a character.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from itertools import accumulate, pairwise

LETTERS = "A-Za-z"
NUMBERS = "0-9"
SPACES = r"\t-\r "  # TAB LF VT FF CR SPACE. TRAP: Python's \s also takes 1C to 1F

# The characters of Unicode 15.0, 15.1 and 16.0 that are letters, and that are numbers.
NEW_LETTERS = """
    1C89-1C8A A7CB-A7CD A7DA-A7DC 105C0-105F3 10D4A-10D65 10D6F-10D85 10EC2-10EC4 1123F-11240
    11380-11389 1138B 1138E 11390-113B5 113B7 113D1 113D3 11BC0-11BE0 11F02 11F04-11F10 11F12-11F33
    1342F 13441-13446 13460-143FA 16100-1611D 16D40-16D6C 18CFF 1B132 1B155 1DF25-1DF2A 1E030-1E06D
    1E4D0-1E4EB 1E5D0-1E5ED 1E5F0 2B739 2EBF0-2EE5D 31350-323AF"""
NEW_NUMBERS = """
    10D40-10D49 116D0-116E3 11BF0-11BF9 11F50-11F59 16130-16139 16D70-16D79 1CCF0-1CCF9 1D2C0-1D2D3
    1E4F0-1E4F9 1E5F1-1E5FA"""


def ranges(text: str) -> list[tuple[int, int]]:
    """Code points in hexadecimal, single ones and first-last, as pairs."""
    ends = [part.split("-") for part in text.split()]
    return [(int(end[0], 16), int(end[-1], 16)) for end in ends]


NEWER = [("a", ranges(NEW_LETTERS)), ("0", ranges(NEW_NUMBERS))]


class Kinds(dict[int, str]):
    """A table for `str.translate`: code point -> an ASCII character of the same kind.

    Filled as characters are met, so that nothing is built beforehand.
    """

    def __missing__(self, code: int) -> str:
        kind = unicodedata.category(chr(code))[0]
        found = {"L": "a", "N": "0", "Z": "\t"}.get(kind, "!")
        if kind == "C":  # unassigned, as far as this Python knows
            for letter, ranges in NEWER:
                if any(low <= code <= high for low, high in ranges):
                    found = letter
        self[code] = found
        return found


# Two characters are more than their category: NEL is white space, and the long s is an s to the
# patterns that ignore case ('s). To the others it is a letter, like the capital S.
KINDS = Kinds({0x85: "\t", 0x17F: "S"})


@dataclass(frozen=True)
class Pattern:
    """A way to cut: the published regular expression, and ours, which cuts the shadow."""

    published: str
    ours: re.Pattern[str]

    def words(self, text: str) -> list[str]:
        """The words of `text`, which joined are `text` again."""
        if text.isascii():
            return self.ours.findall(text)
        shadow = BEYOND_ASCII.sub(lambda run: run[0].translate(KINDS), text)
        cuts = accumulate(map(len, self.ours.findall(shadow)), initial=0)
        return [text[start:stop] for start, stop in pairwise(cuts)]


BEYOND_ASCII = re.compile(r"[^\x00-\x7f]+")

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _ours(published: str) -> re.Pattern[str]:
    """A published pattern in ASCII classes. A class within [ ] loses its own brackets."""
    classes = {r"\p{L}": LETTERS, r"\p{N}": NUMBERS, r"\s": SPACES}
    inside = False  # between [ and ]
    parts = []
    for part in re.split(r"(\\p\{.\}|\\s|\\S|\[|\])", published):
        if part in "[]" and part:
            inside = part == "["
        elif part == r"\S":
            part = f"[^{SPACES}]"
        elif part in classes:
            part = classes[part] if inside else f"[{classes[part]}]"
        parts.append(part)
    return re.compile("".join(parts))


# SmolLM first cuts out every single number, and applies GPT-2's pattern to what lies between. A
# space before a number is therefore at the end of its piece, as if no character came after it.
SMOLLM = GPT2.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")

PATTERNS = {
    name: Pattern(published, _ours(published))
    for name, published in [
        ("gpt2", GPT2),
        ("smollm", SMOLLM),
        ("llama3", LLAMA3),
        ("qwen2", QWEN2),
    ]
}
