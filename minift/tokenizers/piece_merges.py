"""BPE over pieces by the merges of a tokenizer.json, with the ids of the tokenizers library.

    "the lamp" -> "▁the▁lamp" -> ▁ t h e ▁ l a m p -> by rank -> ▁the ▁l amp

The sentencepiece library joins what has the highest score; here the file's own list of merges
decides, in whatever order it stands and whatever it leaves out. A character that is no token
becomes its UTF-8 bytes, where the vocabulary has them all, or else the unknown token.

Where no merge makes a token with a ▁ behind another character, as in nearly every vocabulary, no
merge crosses the beginning of a word either: so words are merged one by one, and kept (words.py).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from minift.errors import EncodeError, FormatError
from minift.tokenizers.merging import merge
from minift.tokenizers.normal_forms import nfc, nfd
from minift.tokenizers.piece_model import BYTES, CONTROL, SPACE, UNKNOWN, PieceModel
from minift.tokenizers.tokens import Finder
from minift.tokenizers.vocabulary import Added
from minift.tokenizers.words import Words

FORMS: dict[str, Callable[[str], str]] = {
    "NFC": nfc,
    "NFD": nfd,
    "NFKC": lambda text: nfc(_compatible(text)),
    "NFKD": lambda text: nfd(_compatible(text)),
}
WORDS = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")  # joined, they are the text
WORDS_OF_ONE_SPACE = re.compile(f"{SPACE}?[^{SPACE}]+|{SPACE}")


@dataclass(frozen=True)
class MergeRules:
    """What a tokenizer.json says of its BPE, beside the vocabulary and the space before a text."""

    merges: list[tuple[str, str]]
    unk: int | None = None
    fuse_unk: bool = False  # unknown characters in a row are one unknown token
    byte_fallback: bool = False
    ignore_merges: bool = False  # a word that is a token is that token
    steps: tuple[tuple[str, ...], ...] = ()  # of the normalizer: a form, or a text and another
    split: bool = False  # every ▁ begins a word, which no merge leaves
    once: bool = False  # the first space belongs to the pre-tokenizer, as Metaspace has it
    document: Mapping[str, Any] = field(default_factory=dict)  # its parts as they are written


class Merges:
    """The merges of a vocabulary, ready for use."""

    def __init__(
        self,
        model: PieceModel,
        rules: MergeRules,
        normalized: Mapping[int, Added],
        always: bool,
        path: str,
    ):
        """`normalized`: added tokens that are looked for in the normalized text; `always`: what
        follows one of them is preceded by a space, as a text is."""
        self.rules, self._always = rules, always
        ids = {text: i for i, text in enumerate(model.pieces)}
        special = (UNKNOWN, CONTROL)
        self._ids = {text: i for text, i in ids.items() if model.types[i] not in special}
        bytes_ = [ids.get(text) for text in BYTES]
        self._bytes = bytes_ if rules.byte_fallback else [None] * 256
        self._ranks, self._merged = _ranked(rules.merges, ids, self._ids, path)
        made = (model.pieces[i] for i in self._merged)
        crossed = any(SPACE in text.lstrip(SPACE) for text in made)
        whole = crossed or rules.ignore_merges or SPACE not in self._ids
        self._pattern = WORDS_OF_ONE_SPACE if rules.split else None if whole else WORDS
        self._words = Words(self._merge)
        first = SPACE if model.dummy_prefix and not rules.once else ""
        names = {self.normalize(first + t.text): (i, t) for i, t in normalized.items()}
        self._found = Finder(
            {name: i for name, (i, _) in names.items()},
            {name: token.flags for name, (_, token) in names.items()},
        )

    def encode(self, text: str, prefix: bool) -> list[int]:
        """The ids of a text, or of what stands between two added tokens; `prefix`: a space first,
        where none is."""
        rules = self.rules
        if text and prefix and not rules.once:
            text = SPACE + text
        text = self.normalize(text)
        ids: list[int] = []
        for n, part in enumerate(self._found.cut(text)):
            if n % 2:
                ids.append(self._found.ids[part])
                continue
            if rules.once:
                spaced = self._always if n else prefix
                if part and spaced and part[0] not in (" ", SPACE):
                    part = SPACE + part
                part = part.replace(" ", SPACE)
            words = [part] if self._pattern is None else self._pattern.findall(part)
            ids.extend(chain.from_iterable(map(self._words.__getitem__, words)))
        return ids

    def normalize(self, text: str) -> str:
        for step in self.rules.steps:
            text = FORMS[step[0]](text) if len(step) == 1 else text.replace(step[0], step[1])
        return text

    def _merge(self, word: str) -> list[int]:
        """The ids of one word."""
        if self.rules.ignore_merges and word in self._ids:
            return [self._ids[word]]
        ids: list[int] = []
        waiting = False  # TRAP: the library puts an unknown token behind the bytes that follow it
        for character in word:
            i = self._ids.get(character)
            parts = [self._bytes[byte] for byte in character.encode()] if i is None else []
            if i is None and None not in parts:
                ids += parts  # type: ignore[arg-type]
                continue
            if waiting and (i is not None or not self.rules.fuse_unk):
                ids.append(self._unk(character))
            waiting = i is None
            if i is None:
                self._unk(character)
            else:
                ids.append(i)
        if waiting:
            ids.append(self._unk(word))
        return merge(ids, self._ranks, self._merged)

    def _unk(self, text: str) -> int:
        if self.rules.unk is None:
            raise EncodeError(
                f"found U+{ord(text[0]):04X}, allowed characters that the vocabulary has; "
                "remove that character"
            )
        return self.rules.unk


def _ranked(
    merges: list[tuple[str, str]], ids: Mapping[str, int], ordinary: Mapping[str, int], path: str
) -> tuple[dict[tuple[int, int], int], list[int]]:
    """Ranks of the pairs of ids, and the id that each rank makes.

    No text ever becomes a special token: the merges that make one are passed over. Of a pair that
    is listed twice, the later counts, as in the library.
    """
    ranks: dict[tuple[int, int], int] = {}
    made: list[int] = []
    for n, (a, b) in enumerate(merges):
        whole = a + b
        if a in ordinary and b in ordinary and whole in ordinary:
            ranks[ordinary[a], ordinary[b]] = len(made)
            made.append(ordinary[whole])
            continue
        for text in (a, b, whole):
            if text not in ids:
                where, allowed = f"model.merges[{n}]", "tokens of the vocabulary"
                raise FormatError(path, where, text, allowed, "out-of-range")
    return ranks, made


def _compatible(text: str) -> str:
    """Every character in its compatible form, which `nfc` and `nfd` put in order."""
    if text.isascii():
        return text
    each = {c: unicodedata.normalize("NFKD", c) for c in set(text)}
    return "".join([each[c] for c in text])
