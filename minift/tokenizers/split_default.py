r"""How llama.cpp cuts words where a GGUF file names no pre-tokenizer, or the one called default.

Four patterns, one after the other, each within the parts that those before it left: punctuation and
ASCII symbols in a row, then GPT-2's words, then numbers apart from the space before them, then
numbers in threes from the left.

    "a  12345, b" -> a |  |   | 123 | 45 | , |  b

It is what old files get, whatever their model was trained with; files say better since May 2024.
"""

from __future__ import annotations

import re
import unicodedata

from minift.tokenizers import split
from minift.tokenizers.split import BEYOND_ASCII, KINDS

PUNCTUATION = re.compile(r"([!-#%-*,-/:;?@\[-\]_{}$+<=>^~|]+)")
NUMBERS, THREES = re.compile("([0-9]+)"), re.compile("([0-9]{3})")
PUBLISHED = (r"[\p{P}\$\+<=>\^~\|]+", split.GPT2.removesuffix(r"|\s+"), r"\p{N}+",
             "[0-9][0-9][0-9]")  # fmt: skip


class Kinds(dict[int, str]):
    """As split.Kinds, but only punctuation is !, and ` is everything else."""

    def __missing__(self, code: int) -> str:
        found = KINDS[code]
        if found == "!" and unicodedata.category(chr(code))[0] != "P":
            found = "`"
        self[code] = found
        return found


ASCII = Kinds()


class Default:
    """The way to cut, as split.Pattern."""

    def words(self, text: str) -> list[str]:
        """The words of `text`, which joined are `text` again."""
        shadow = text
        if not text.isascii():
            shadow = BEYOND_ASCII.sub(lambda run: run[0].translate(ASCII), text)
        words: list[str] = []
        at = 0
        for part in PUNCTUATION.split(shadow):
            for word in split.PATTERNS["gpt2"].ours.findall(part):
                for n, piece in enumerate(NUMBERS.split(word)):
                    there = text[at : at + len(piece)]
                    at += len(piece)
                    words += THREES.split(there) if n % 2 else [there]
        return [word for word in words if word]


PATTERNS: dict[str, split.Pattern | Default] = {**split.PATTERNS, "default": Default()}
