"""WordPiece, the tokenizer of BERT and its kin: clean, cut into words, take the longest pieces.

    "Unaffable!" -> unaffable ! -> una ##ffa ##ble !          a piece inside a word begins with ##

Wu et al. 2016, arXiv:1609.08144, section 4.1, as Devlin et al. 2019 use it. Cleaning drops control
characters, makes every kind of space a blank, sets CJK characters apart, takes the accents off
and lowers the case, each where the file asks for it. A word is then matched greedily from its
front; one that cannot be matched whole is the unknown token.

The ids are those of the tokenizers library, with one exception made on purpose: the name of a
special token in a text is plain text. Length limits and padding in a file belong to batches and are
ignored.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from minift.errors import EncodeError
from minift.tokenizers import chat, wordpiece_json
from minift.tokenizers.beside import Beside
from minift.tokenizers.normal_forms import nfd
from minift.tokenizers.split import ranges
from minift.tokenizers.tokenizer_class import resolve
from minift.tokenizers.tokens import finders
from minift.tokenizers.vocabulary import checked_ids
from minift.tokenizers.wordpiece_json import Settings, WordVocabulary
from minift.tokenizers.words import Words

# Where words of a script without blanks stand alone, as the library has the ranges.
CJK = (
    *((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)),
)
# What the library's decoder joins again, in this order.
CLEAN_UP = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't")),
    *((" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)

# The library's tables are those of Unicode 8; Python's are newer. Since then these became combining
# marks, punctuation and format characters, and two ceased to be what they were.
NEW_MARKS = """
    07FD 0898-089F 08CA-08E1 09FE 0AFA-0AFF 0B55 0C04 0C3C 0D00 0D3B-0D3C 0D81 0EBA 180F
    1885-1886 1ABF-1ACE 1DF6-1DFB A82C A8C5 A8FF A9BD 10D24-10D27 10EAB-10EAC 10F46-10F50
    10F82-10F85 11070 11073-11074 110C2 111C9 111CF 1123E 1133B 11438-1143F 11442-11444 11446
    1145E 1182F-11837 11839-1183A 1193B-1193C 1193E 11943 119D4-119D7 119DA-119DB 119E0
    11A01-11A0A 11A33-11A38 11A3B-11A3E 11A47 11A51-11A56 11A59-11A5B 11A8A-11A96 11A98-11A99
    11C30-11C36 11C38-11C3D 11C3F 11C92-11CA7 11CAA-11CB0 11CB2-11CB3 11CB5-11CB6 11D31-11D36
    11D3A 11D3C-11D3D 11D3F-11D45 11D47 11D90-11D91 11D95 11D97 11EF3-11EF4 16F4F 16FE4
    1CF00-1CF2D 1CF30-1CF46 1E000-1E006 1E008-1E018 1E01B-1E021 1E023-1E024 1E026-1E02A
    1E130-1E136 1E2AE 1E2EC-1E2EF 1E944-1E94A"""
NEW_SIGNS = """
    061D 09FD 0A76 0C77 0C84 1B7D-1B7E 2E43-2E4F 2E52-2E5D 10EAD 10F55-10F59 10F86-10F89
    1144B-1144F 1145A-1145B 1145D 11660-1166C 116B9 1183B 11944-11946 119E2 11A3F-11A46
    11A9A-11A9C 11A9E-11AA2 11C41-11C45 11C70-11C71 11EF7-11EF8 11FFF 12FF1-12FF2 16E97-16E9A
    16FE2 1E95E-1E95F"""
NEW_HIDDEN = "0890-0891 08E2 110CD 13430-13438"
OLD_MARKS, OLD_SIGNS = "1734", "166D 111C9"


def _differing(newer: str, older: str = "") -> dict[str, bool]:
    """character -> what the library takes it for, where that is not what Python does."""
    found = {chr(c): False for a, b in ranges(newer) for c in range(a, b + 1)}
    return found | {chr(c): True for a, b in ranges(older) for c in range(a, b + 1)}


MARKS, SIGNS = _differing(NEW_MARKS, OLD_MARKS), _differing(NEW_SIGNS, OLD_SIGNS)
HIDDEN = _differing(NEW_HIDDEN)


class _Kept(dict[int, str | None]):
    """For `str.translate`: what cleaning and spacing make of a character, worked out once."""

    def __init__(self, settings: Settings):
        super().__init__()
        self.settings = settings

    def __missing__(self, code: int) -> str | None:
        character, found = chr(code), None
        if self.settings.clean:
            if character in "\t\n\r":
                found = " "
            elif code in (0, 0xFFFD) or is_hidden(character):
                found = ""
            elif character.isspace():
                found = " "
        if self.settings.cjk and any(low <= code <= high for low, high in CJK):
            found = f" {character} "
        self[code] = character if found is None else found
        return self[code]


class WordPiece:
    """A WordPiece tokenizer; made by `from_json` or `from_vocab`."""

    add_bos = False
    template: str | None = None
    chat_template: str | None = None
    also_ends: frozenset[int] = frozenset()

    def __init__(self, vocab: WordVocabulary, path: str):
        self.vocab, self.settings = vocab, vocab.settings
        self.tokens = vocab.tokens
        self.vocab_size = len(vocab.tokens)
        ids = checked_ids(vocab.tokens, "vocab", path)
        self.unk, self.cls, self.sep = (vocab.roles[role] for role in ("unk", "cls", "sep"))
        self.mask, self.pad = vocab.roles.get("mask"), vocab.roles.get("pad")
        self.bos: int | None = self.cls
        self.eos = self.sep
        special = {i for i, token in vocab.added.items() if token.special}
        self.special = {self.tokens[i]: i for i in sorted(special | set(vocab.roles.values()))}
        self.wrapping = vocab.wrapping
        # No text becomes a special token; the pieces of words are the others. Added tokens are
        # looked for in texts, and are pieces where they were so before.
        added = {i: token for i, token in vocab.added.items() if token.text not in self.special}
        self._pieces = {text: i for text, i in ids.items() if i not in vocab.outside}
        for text in self.special:
            self._pieces.pop(text, None)
        self._longest = max(map(len, self._pieces), default=0)
        self._kept = _Kept(self.settings)
        self._words = Words(self._split)
        self._shown: dict[tuple[int, bool], str] = {}
        self._raw, self._normalized = finders(added, self._normal)

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], config: Mapping[str, Any] | None, path: str
    ) -> WordPiece:
        """The tokenizer of a parsed tokenizer.json; every part of it is one that is known here."""
        return cls(wordpiece_json.from_json(data, config or {}, path), path)

    @classmethod
    def from_vocab(cls, text: str, config: Mapping[str, Any] | None, path: str) -> WordPiece:
        """The tokenizer of a vocab.txt, one token a line, with what tokenizer_config.json says."""
        beside = Beside(os.path.dirname(path), config)
        data, settings = resolve(wordpiece_json.of_lines(text), beside, path, whole=False)
        return cls.from_json(data, settings, path)

    def _normal(self, text: str) -> str:
        """Cleaned text, its accents off and its case lowered as the file asks for it."""
        settings = self.settings
        if settings.clean or settings.cjk:
            text = text.translate(self._kept)
        if settings.strips and not text.isascii():
            text = "".join(c for c in nfd(text) if not is_mark(c))
        if settings.lower:
            # Character by character: the library knows no final sigma.
            text = text.lower() if text.isascii() else "".join(c.lower() for c in text)
        return text

    def words(self, text: str) -> list[str]:
        """The words and single signs of a text that is clean, in order."""
        found: list[str] = []
        for word in text.split():
            if word.isalnum():
                found.append(word)
                continue
            start = 0
            for i, character in enumerate(word):
                if is_sign(character):
                    found += [word[start:i], character] if start < i else [character]
                    start = i + 1
            if start < len(word):
                found.append(word[start:])
        return found

    def encode(self, text: str, after: int | None = None) -> list[int]:
        """The ids of `text`, without [CLS] and [SEP]; special tokens in it are plain text.

        What comes before a text (`after`) makes no difference here; it does in sentencepiece.py.
        """
        ids: list[int] = []
        for n, part in enumerate(self._raw.cut(text)):  # every second part is an added token
            if n % 2:
                ids.append(self._raw.ids[part])
                continue
            for k, inner in enumerate(self._normalized.cut(self._normal(part))):
                if k % 2:
                    ids.append(self._normalized.ids[inner])
                else:
                    words = self.words(inner)
                    ids.extend(chain.from_iterable(map(self._words.__getitem__, words)))
        return ids

    def _split(self, word: str) -> list[int]:
        """The longest piece at the front, then the longest that goes on, until the end."""
        if len(word) > self.settings.longest_word:
            return [self.unk]
        ids, start = [], 0
        while start < len(word):
            prefix = self.settings.prefix if start else ""
            for stop in range(min(len(word), start + self._longest), start, -1):
                piece = self._pieces.get(prefix + word[start:stop])
                if piece is not None:
                    break
            else:
                return [self.unk]
            ids.append(piece)
            start = stop
        return ids

    def wrap(
        self, ids: Sequence[int], other: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """(ids, token types) as the model was trained: [CLS] A [SEP], or [CLS] A [SEP] B [SEP]."""
        return self.wrapping(ids, other)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Pieces joined to words, signs to the words before them."""
        parts: list[str] = []
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise EncodeError(f"found token id {i}, allowed 0 to {self.vocab_size - 1:,}")
            if skip_special and self.tokens[i] in self.special:
                continue
            place = (i, not parts)
            if place not in self._shown:
                self._shown[place] = self._joined(self.tokens[i], not parts)
            parts.append(self._shown[place])
        return "".join(parts)

    def _joined(self, text: str, first: bool) -> str:
        """What a token adds to a text, at its start or after others."""
        if not first:
            inside = text.startswith(self.settings.prefix)
            text = text.removeprefix(self.settings.prefix) if inside else " " + text
        if self.settings.clean_up:
            for apart, joined in CLEAN_UP:
                text = text.replace(apart, joined)
        return text

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        return self.decode(ids, skip_special=skip_special).encode()

    def token_bytes(self, i: int) -> bytes:
        return self.decode_bytes([i], skip_special=False)

    def chat(
        self, messages: Sequence[Mapping[str, str]], reply: bool = False
    ) -> tuple[list[int], list[int]]:
        return chat.render(self, messages, reply=reply)

    def files(self) -> dict[str, bytes]:
        """tokenizer.json, tokenizer_config.json and vocab.txt, the same bytes every time."""
        return wordpiece_json.to_files(self.vocab)


def is_sign(character: str) -> bool:
    """Punctuation, and every ASCII sign that is no letter, digit or blank."""
    if character.isascii():
        return not character.isalnum() and character > " " and character != "\x7f"
    return SIGNS.get(character, unicodedata.category(character)[0] == "P")


def is_mark(character: str) -> bool:
    """A combining mark, such as an accent."""
    return MARKS.get(character, unicodedata.category(character) == "Mn")


def is_hidden(character: str) -> bool:
    """A control or format character, or one of private use."""
    return HIDDEN.get(character, unicodedata.category(character) in ("Cc", "Cf", "Co", "Cs"))
