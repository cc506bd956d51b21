"""Sentencepiece tokenizers (Llama 1 and 2, Mistral, Gemma), by the sentencepiece library.

    "Hello é" -> "▁Hello▁é" -> ▁Hello ▁ <0xC3> <0xA9> -> ids

A space is a character of the pieces, and most models put one before every text, so that a word has
one form wherever it stands. Kudo and Richardson 2018, arXiv:1808.06226. What the vocabulary lacks
becomes its UTF-8 bytes, or the unknown token where there are no byte pieces.

Where that first space goes is what implementations differ in. Here, for `encode(text, after=...)`:

- at the start of a text (`after` is None): always, as the library does;
- after a special token: if `legacy`, which is the default. Llama's and Mistral's own code and
  llama.cpp encode each part between special tokens as a text of its own. transformers does so too
  where tokenizer_config.json says `"legacy": true` (or nothing, before version 5), and does not
  where it says false, and takes a tokenizer.json at its word; and so does minift;
- after any other token: never, as the text simply goes on.

`decode` takes that space away again, `decode_bytes` does not: it says what ids add to a text.

No text ever becomes a special token: those of the vocabulary are of type control, which the library
does not look for; a token of another type that the configuration calls special is made one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from minift.errors import ConfigError, EncodeError, FormatError
from minift.tokenizers import chat, piece_json, piece_model, piece_settings
from minift.tokenizers.piece_merges import MergeRules, Merges
from minift.tokenizers.piece_model import (
    BYTE,
    BYTES,
    CONTROL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    PieceModel,
)
from minift.tokenizers.piece_settings import Settings
from minift.tokenizers.tokens import Finder, TokenBytes
from minift.tokenizers.vocabulary import FLAGS, Added
from minift.tokenizers.wrapping import after as opened_by


class SentencePiece:
    """A sentencepiece tokenizer; made by `from_model`, `from_json` or `from_gguf`."""

    def __init__(
        self,
        model: PieceModel,
        settings: Settings,
        path: str,
        *,
        raw: bytes | None = None,
        rules: MergeRules | None = None,
    ):
        self.path, self.settings, self.rules, self._raw = path, settings, rules, raw
        self.eos, self.bos, self.pad = settings.eos, settings.bos, settings.pad
        self.add_bos, self.legacy = settings.add_bos, settings.legacy
        self.template = settings.template
        self.chat_template: str | None = None  # a row of chat.TEMPLATES, instead of recognising one
        self.also_ends: frozenset[int] = frozenset()

        types = bytearray(model.types)
        for i in settings.special:
            if i < len(types) and types[i] not in (UNKNOWN, BYTE):
                types[i] = CONTROL
        if rules is not None:
            for i in settings.found:
                types[i] = USER_DEFINED
        prefix = model.dummy_prefix and settings.prefix
        self.model = replace(model, types=types, dummy_prefix=prefix)
        self.vocab_size = len(model.pieces) + len(settings.added)
        hidden = [i for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL)]
        hidden += [i for i, token in settings.added.items() if token.special]
        each = [_piece_bytes(*row) for row in zip(model.pieces, types, strict=True)]
        each += [settings.added[i].text.encode() for i in sorted(settings.added)]
        self._bytes = TokenBytes(each, hidden)
        self.special = {each[i].decode(): i for i in sorted(hidden)}
        self._special_ids = frozenset(hidden)
        if self.add_bos and self.bos is None:
            allowed = "an id, since texts shall start with it"
            raise FormatError(path, "bos_token", "nothing", allowed, "missing-field")

        self._wrapping = settings.wrapping or opened_by(self.bos if self.add_bos else None)
        # Ordinary added tokens are found in texts, the longest first: in the text as it is, or
        # else in the normalized one, where there is such a thing.
        ordinary = {i: t for i, t in (*settings.found.items(), *settings.added.items())
                    if not t.special}  # fmt: skip
        self._parted = self._special_ids | ordinary.keys()
        late = {}
        if rules is not None:
            late = {i: t for i, t in ordinary.items() if "normalized" in t.flags}
            always = prefix and settings.legacy
            self._merges = Merges(self.model, rules, late, always, path)
        early = {t.text: (i, t) for i, t in ordinary.items() if i not in late}
        self._added = Finder(
            {text: i for text, (i, _) in early.items()},
            {text: t.flags for text, (_, t) in early.items()},
        )
        self._processors: dict[bool, Any] = {}
        if rules is None:
            self._processor(prefix)

    @classmethod
    def from_model(
        cls,
        raw: bytes,
        config: Mapping[str, Any] | None,
        path: str,
        *,
        added: Mapping[str, Any] | None = None,
    ) -> SentencePiece:
        """The tokenizer in the bytes of a tokenizer.model.

        `config` and `added` are the parsed tokenizer_config.json and added_tokens.json beside it.
        """
        path = str(path)
        model = piece_model.read(bytes(raw), path)
        settings = piece_settings.from_config(model, config or {}, added or {}, path)
        return cls(model, settings, path, raw=bytes(raw))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], path: str) -> SentencePiece:
        """The tokenizer in the metadata of a GGUF file whose tokenizer.ggml.model is "llama"."""
        return cls(*piece_settings.from_gguf(metadata, str(path)), str(path))

    @classmethod
    def from_json(
        cls,
        data: Mapping[str, Any],
        config: Mapping[str, Any] | None,
        path: str,
        *,
        added: Mapping[str, Any] | None = None,
    ) -> SentencePiece:
        """The tokenizer of a parsed tokenizer.json that holds pieces (`piece_json.is_pieces`)."""
        model, settings, rules = piece_json.read(data, config, str(path), added)
        return cls(model, settings, str(path), rules=rules)

    def _processor(self, prefix: bool) -> Any:
        """The library's object that puts a space before a text, or the one that does not."""
        if prefix not in self._processors:
            import sentencepiece  # here, since a model of another kind needs none of it

            raw = piece_model.to_bytes(self.model, dummy_prefix=prefix)
            try:
                processor = sentencepiece.SentencePieceProcessor(model_proto=raw)
            except (RuntimeError, ValueError, OSError) as error:
                allowed = "what the sentencepiece library reads"
                raise FormatError(self.path, "model", str(error), allowed, "unsafe") from None
            self._processors[prefix] = processor
        return self._processors[prefix]

    def files(self) -> dict[str, bytes]:
        """tokenizer.model, as it was, tokenizer.json, or both, and tokenizer_config.json."""
        files, rules = {}, self.rules
        if rules is None and piece_json.can_write(self.model, self.settings):
            rules = piece_json.rules_of(self.model, self.settings)
        if rules is not None:
            model, settings = self.model, self.settings
            files["tokenizer.json"] = piece_json.to_json(model, settings, self.special, rules)
        if self.rules is None and not any(" " in text for text in self.model.pieces):
            files["tokenizer.model"] = self._raw or piece_model.to_bytes(self.model)
        return files | {"tokenizer_config.json": _config_file(self, "tokenizer.json" in files)}

    def gguf(self, size: int) -> dict[str, Any]:
        """The metadata of a GGUF file whose embedding has `size` rows."""
        model = self.model
        if self.rules is not None:
            merges = self.rules.merges
            try:
                scores = piece_json.scores_of(model.pieces, model.types, merges, self.path)
            except FormatError as error:
                found = f"gguf: a vocabulary whose merges no scores can say ({error.detail})"
                raise ConfigError(f"{found} has no place there") from None
            model = replace(model, scores=scores)
        return piece_settings.to_gguf(model, self.settings, chat.jinja(self), size)

    def encode(self, text: str, after: int | None = None) -> list[int]:
        """The ids of `text`: no BOS, no EOS, and special tokens in it are plain text.

        `after` is the token before the text, if any: a text that goes on gets no extra space.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            found = f"found U+{code:04X}, half of a surrogate pair, allowed text"
            raise EncodeError(found) from None
        ids: list[int] = []
        for n, part in enumerate(self._added.cut(text)):
            if n % 2:  # an added token, which counts as a special one for the space after it
                ids.append(self._added.ids[part])
                continue
            last = ids[-1] if ids else after
            joined = last is not None and not (self.legacy and last in self._parted)
            spaced = self.model.dummy_prefix and not joined
            if self.rules is not None:
                ids += self._merges.encode(part, spaced)
                continue
            if self.settings.once and part.startswith((" ", SPACE)):
                spaced = False
            ids += self._processor(spaced).encode(part)
        return ids

    def wrap(
        self, ids: Sequence[int], other: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and token types of a text, or two, each after BOS if `add_bos`."""
        return self._wrapping(ids, other)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`, without the space that `encode` put first."""
        text = self.decode_bytes(ids, skip_special=skip_special).decode(errors="replace")
        if self.model.trim_spaces:
            return text.lstrip(" ")
        return text.removeprefix(" ") if self.model.dummy_prefix else text

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        """What `ids` add to a text, which may end within a character; a first space is kept."""
        return self._bytes.joined(ids, skip_special=skip_special)

    def token_bytes(self, i: int) -> bytes:
        """The bytes of one token; those of a special one are its name."""
        return self._bytes[i]

    def chat(
        self, messages: Sequence[Mapping[str, str]], reply: bool = False
    ) -> tuple[list[int], list[int]]:
        """Ids and mask of a conversation; mask 1 = a token to be learned (chat.py)."""
        return chat.render(self, messages, reply=reply)


def _piece_bytes(text: str, kind: int) -> bytes:
    if kind == BYTE:
        return bytes([BYTES[text]])
    return (text if kind in (UNKNOWN, CONTROL) else text.replace(SPACE, " ")).encode()


def _unknown(model: PieceModel) -> str | None:
    return model.pieces[model.types.index(UNKNOWN)] if UNKNOWN in model.types else None


def _config_file(tokenizer: SentencePiece, fast: bool) -> bytes:
    """tokenizer_config.json: the roles, and the tokens that are not in the model file.

    `fast`: there is a tokenizer.json, which transformers shall take as it is.
    """

    def name(i: int | None) -> str | None:
        return None if i is None else tokenizer.token_bytes(i).decode()

    rows = {i: Added(text) for text, i in tokenizer.special.items()}
    rows |= tokenizer.settings.found
    rows |= tokenizer.settings.added
    config = {
        "tokenizer_class": "LlamaTokenizer"
        if tokenizer.settings.once and not fast
        else "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            str(i): {"content": token.text}
            | {flag: flag in token.flags for flag in FLAGS}
            | {"special": token.special}
            for i, token in sorted(rows.items())
        },
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": False,
        "add_prefix_space": tokenizer.model.dummy_prefix,
        "legacy": tokenizer.legacy,
        "bos_token": name(tokenizer.bos),
        "eos_token": name(tokenizer.eos),
        "pad_token": name(tokenizer.pad),
        "unk_token": _unknown(tokenizer.model),
        "clean_up_tokenization_spaces": False,
    }
    template = chat.jinja(tokenizer)
    if template is not None:
        config["chat_template"] = template
    return (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode()
