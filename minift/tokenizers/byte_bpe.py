"""Byte-level byte-pair encoding: words to bytes, bytes to ids, neighbours merged by rank.

    "low low" -> ["low", " low"] -> l o w | Ġ l o w -> lo w | Ġ lo w -> low | Ġ low -> ids

Of all neighbours that the vocabulary can merge, the pair learned first (the lowest rank) is
merged, the leftmost one of equals, until no pair is left. Radford et al. 2019 (GPT-2), section 2.2;
Sennrich et al. 2016, arXiv:1508.07909. The ids are those of the tokenizers library, with two
exceptions made on purpose: the name of a special token in a text is plain text, and a byte that the
vocabulary lacks is an error, where the library drops it in silence.

Natural text repeats its words, so a word is merged once and then looked up (words.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NoReturn

from minift.errors import EncodeError, FormatError
from minift.tokenizers import chat, tokenizer_json, vocabulary
from minift.tokenizers.merging import merge
from minift.tokenizers.normal_forms import nfc
from minift.tokenizers.split_default import PATTERNS
from minift.tokenizers.tokens import TokenBytes, finders
from minift.tokenizers.vocabulary import ROLES, Vocabulary, checked_ids
from minift.tokenizers.words import Words
from minift.tokenizers.wrapping import after


def _byte_alphabet() -> list[str]:
    """A printable character for each byte, in which vocabularies are written.

    Bytes that Latin-1 prints stand for themselves; the others take 256, 257, ... in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


ALPHABET = _byte_alphabet()
BYTE_OF = {character: byte for byte, character in enumerate(ALPHABET)}


class ByteBPE:
    """A byte-level BPE tokenizer; made by `from_gguf` or `from_json`."""

    def __init__(self, vocab: Vocabulary, path: str):
        # A byte is an ordinary token, even where a file makes it a special one (as padding, say).
        added = {i: t for i, t in vocab.added.items() if not (t.special and t.text in BYTE_OF)}
        self.vocab = vocab = replace(vocab, added=added)
        self.vocab_size = len(vocab.tokens)
        self.eos, self.bos, self.pad = vocab.eos, vocab.bos, vocab.pad
        self.cls, self.sep, self.mask = vocab.cls, vocab.sep, vocab.mask
        self.add_bos, self.template = vocab.add_bos, vocab.template
        self.chat_template: str | None = None  # a row of chat.TEMPLATES, instead of recognising one
        self.also_ends: frozenset[int] = frozenset()

        ids = checked_ids(vocab.tokens, vocab.places["tokens"], path)
        _check_roles(vocab, path)
        self.special = {t.text: i for i, t in sorted(vocab.added.items()) if t.special}
        # An added token that is not special is found in texts first; merges may make it, too.
        found = {i: t for i, t in vocab.added.items() if not t.special}
        ordinary = {text: i for text, i in ids.items() if i not in vocab.added or i in found}
        self._byte_ids = [ordinary.get(character, -1) for character in ALPHABET]
        self._ranks, self._merged = _ranked(vocab, ordinary, path)
        each = [_bytes(text) for text in vocab.tokens]
        for i in set(vocab.added) - (set(found) & set(self._merged)):
            each[i] = vocab.added[i].text.encode()
        self._bytes = TokenBytes(each, self.special.values())
        self._whole = {}  # bytes -> id, of vocabularies where a word that is a token stays whole
        if vocab.ignore_merges:
            self._whole = {each[i]: i for i in ordinary.values() if i not in found}
        self._pattern = PATTERNS[vocab.pattern]
        self._words = Words(self._merge)
        # Ordinary added tokens (a run of spaces, say) are found in texts: some as the file has
        # them, and then, in the normalized text, those that the file calls normalized.
        self._raw, self._normalized = finders(found, self._normal)
        self._wrapping = vocab.wrapping or after(vocab.bos if vocab.add_bos else None)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], path: str) -> ByteBPE:
        """The tokenizer in the metadata of a GGUF file."""
        return cls(vocabulary.from_gguf(metadata, str(path)), str(path))

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], config: Mapping[str, Any] | None, path: str
    ) -> ByteBPE:
        """The tokenizer of a parsed tokenizer.json and tokenizer_config.json."""
        return cls(tokenizer_json.from_json(data, config, str(path)), str(path))

    def files(self) -> dict[str, bytes]:
        """tokenizer.json and tokenizer_config.json, the same bytes every time."""
        return tokenizer_json.to_files(self.vocab, chat.jinja(self))

    def gguf(self, size: int) -> dict[str, Any]:
        """The metadata of a GGUF file whose embedding has `size` rows."""
        return vocabulary.to_gguf(self.vocab, chat.jinja(self), size)

    def encode(self, text: str, after: int | None = None) -> list[int]:
        """The ids of `text`: no BOS, no EOS, and special tokens in it are plain text.

        What comes before a text (`after`) makes no difference here; it does in sentencepiece.py.
        """
        ids: list[int] = []
        for n, part in enumerate(self._raw.cut(text)):  # every second part is an added token
            ids += [self._raw.ids[part]] if n % 2 else self._encode(self._normal(part))
        return ids

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for n, part in enumerate(self._normalized.cut(text)):
            if n % 2:
                ids.append(self._normalized.ids[part])
                continue
            if self.vocab.prefix_space and part and part[0] != " ":
                part = " " + part
            # map and chain keep the loop over words out of the interpreter: twice the speed.
            words = self._pattern.words(part)
            ids.extend(chain.from_iterable(map(self._words.__getitem__, words)))
        return ids

    def _normal(self, text: str) -> str:
        return nfc(text) if self.vocab.nfc else text

    def wrap(
        self, ids: Sequence[int], other: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and token types of one text or two, with the special tokens that the model expects.

        That is BOS before a text if `add_bos`, <s> and </s> for RoBERTa, and nothing for others.
        """
        return self._wrapping(ids, other)

    def _merge(self, word: str) -> list[int]:
        """The ids of one word."""
        try:
            raw = word.encode()
        except UnicodeEncodeError as error:
            code = ord(word[error.start])
            raise EncodeError(
                f"found U+{code:04X}, half of a surrogate pair, allowed text"
            ) from None
        if raw in self._whole:
            return [self._whole[raw]]
        ids = [self._byte_ids[byte] for byte in raw]
        if -1 in ids:
            self._refuse(word, raw[ids.index(-1)])
        return merge(ids, self._ranks, self._merged)

    def _refuse(self, word: str, byte: int) -> NoReturn:
        character = next(c for c in word if byte in c.encode())
        raise EncodeError(
            f"found byte {byte:02X} (of U+{ord(character):04X}), "
            "allowed bytes that the vocabulary has; remove that character"
        )

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, skip_special=skip_special).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        """The bytes of `ids`, which may end within a character."""
        return self._bytes.joined(ids, skip_special=skip_special)

    def token_bytes(self, i: int) -> bytes:
        """The bytes of one token; those of a special one are its name."""
        return self._bytes[i]

    def chat(
        self, messages: Sequence[Mapping[str, str]], reply: bool = False
    ) -> tuple[list[int], list[int]]:
        """Ids and mask of a conversation; mask 1 = a token to be learned (chat.py)."""
        return chat.render(self, messages, reply=reply)


def _bytes(token: str) -> bytes:
    """A token from the byte alphabet; one that is not written in it is plain text."""
    try:
        return bytes([BYTE_OF[character] for character in token])
    except KeyError:
        return token.encode()


def _check_roles(vocab: Vocabulary, path: str) -> None:
    last = len(vocab.tokens) - 1
    for role in ROLES:
        i = getattr(vocab, role)
        if i is not None and not 0 <= i <= last:
            raise FormatError(path, vocab.places[role], i, f"0 to {last:,}", "out-of-range")
    if vocab.add_bos and vocab.bos is None:
        allowed = "an id, since texts shall start with it"
        raise FormatError(path, vocab.places["bos"], "nothing", allowed, "missing-field")


def _ranked(
    vocab: Vocabulary, ordinary: Mapping[str, int], path: str
) -> tuple[dict[tuple[int, int], int], list[int]]:
    """Ranks of the pairs of ids, and the id that each rank makes.

    Only ordinary tokens may take part, so that no text can ever turn into a special token.
    """
    ranks: dict[tuple[int, int], int] = {}
    merged = []
    for rank, (a, b) in enumerate(vocab.merges):
        where = f"{vocab.places['merges']}[{rank}]"
        for part in (a, b, a + b):
            if part not in ordinary:
                allowed = "ordinary tokens of the vocabulary"
                raise FormatError(path, where, part, allowed, "out-of-range")
        if ranks.setdefault((ordinary[a], ordinary[b]), rank) != rank:
            raise FormatError(path, where, f"{a} {b} again", "each merge once", "dup-key")
        merged.append(ordinary[a + b])
    return ranks, merged
