"""Which tokenizer a model has: that of its folder, or that in the metadata of its GGUF file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minift.checkpoints import strict_json
from minift.errors import ConfigError, FormatError
from minift.storage import read_file
from minift.tokenizers import chat
from minift.tokenizers.byte_bpe import ByteBPE
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.piece_json import is_pieces
from minift.tokenizers.sentencepiece import SentencePiece
from minift.tokenizers.vocabulary import field_of, one_of
from minift.tokenizers.wordpiece import WordPiece

KINDS: dict[type, str] = {
    ByteBPE: "byte-level BPE",
    WordPiece: "WordPiece",
    SentencePiece: "sentencepiece",
}
LIMIT = 64 << 20  # bytes of any of its files


def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    tokenizer.json says which it is; sentencepiece's own tokenizer.model goes first where both hold
    pieces, and serves alone. An encoder of older times has a vocab.txt alone.
    """
    path, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    config = config_in(folder)
    if not os.path.exists(path) and os.path.exists(pieces):
        return sentencepiece_in(folder, config)
    if not os.path.exists(path) and os.path.exists(words := folder / "vocab.txt"):
        return WordPiece.from_vocab(text_in(words), config, str(words))
    data = strict_json.read(path, limit_bytes=LIMIT)
    model = field_of(data, "model", dict, str(path))
    # Old files leave the type out: only WordPiece has a longest word.
    usual = "WordPiece" if "max_input_chars_per_word" in model else "BPE"
    known = {"BPE": ByteBPE, "WordPiece": WordPiece}
    if os.path.exists(pieces):
        known["Unigram"] = SentencePiece
    kind = one_of(model.get("type", usual), known, str(path), "model.type")
    if is_pieces(data):
        return SentencePiece.from_json(
            data, with_family(config, folder), str(path), added=added_in(folder)
        )
    if kind is SentencePiece:
        return sentencepiece_in(folder, config)
    return kind.from_json(data, config, str(path))


def config_in(folder: Path) -> dict[str, Any] | None:
    """tokenizer_config.json, with the chat template that may stand in a file of its own."""
    path, template = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    if not os.path.exists(path):
        return None
    config = strict_json.read(path)
    return config | {"chat_template": text_in(template)} if os.path.exists(template) else config


def sentencepiece_in(folder: Path, config: Mapping[str, Any] | None) -> SentencePiece:
    """The tokenizer of a tokenizer.model."""
    path = folder / "tokenizer.model"
    raw = read_file(path, limit_bytes=LIMIT)
    config = with_family(config, folder)
    return SentencePiece.from_model(raw, config, str(path), added=added_in(folder))


def added_in(folder: Path) -> dict[str, Any] | None:
    path = folder / "added_tokens.json"
    return strict_json.read(path) if os.path.exists(path) else None


def with_family(config: Mapping[str, Any] | None, folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the family of config.json: to some, classes mean nothing."""
    path = folder / "config.json"
    family = strict_json.read(path).get("model_type") if os.path.exists(path) else None
    return dict(config or {}) | {"model_type": family}


def tokenizer_of(metadata: Mapping[str, Any], path: str) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file."""
    where = "tokenizer.ggml.model"
    known = {"gpt2": ByteBPE, "llama": SentencePiece}
    return one_of(field_of(metadata, where, str, path), known, path, where).from_gguf(
        metadata, path
    )


def text_in(path: Path) -> str:
    try:
        return read_file(path, limit_bytes=LIMIT).decode()
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at {error.start:,}"
        raise FormatError(path, "text", found, "UTF-8", "bad-utf8") from None


def template_name(tokenizer: Tokenizer) -> str:
    """The chat template that came with the model, in words."""
    if tokenizer.template is None:
        return "no template"
    try:
        row = chat.find(tokenizer)
    except ConfigError:
        return "a template that minift does not know: needs --chat-template"
    return next(name for name, known in chat.TEMPLATES.items() if known is row)
