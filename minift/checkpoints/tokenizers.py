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
from minift.tokenizers.wordpiece import WordPiece

KINDS: dict[type, str] = {ByteBPE: "byte-level BPE", WordPiece: "WordPiece"}
LIMIT = 64 << 20  # bytes of any of its files


def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, or an encoder's vocab.txt alone."""
    path, words = folder / "tokenizer.json", folder / "vocab.txt"
    beside = folder / "tokenizer_config.json"
    config = strict_json.read(beside) if os.path.exists(beside) else None
    if not os.path.exists(path) and os.path.exists(words):
        return WordPiece.from_vocab(text_in(words), config, str(words))
    data = strict_json.read(path, limit_bytes=LIMIT)
    model = data.get("model")
    if isinstance(model, dict) and model.get("type") == "WordPiece":
        return WordPiece.from_json(data, config, str(path))
    return ByteBPE.from_json(data, config, str(path))


def tokenizer_of(metadata: Mapping[str, Any], path: str) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file."""
    return ByteBPE.from_gguf(metadata, path)


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
