"""Which tokenizer a model has: that of its folder, or that in the metadata of its GGUF file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minift.errors import FormatError
from minift.formats import placeholder, strict_json
from minift.storage import read_file
from minift.tokenizers import chat, text_format
from minift.tokenizers.beside import ADDED, CONFIG, MAP, Beside
from minift.tokenizers.byte_bpe import ByteBPE
from minift.tokenizers.fitting import fitting
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.piece_json import is_pieces
from minift.tokenizers.sentencepiece import SentencePiece
from minift.tokenizers.text_format import TextFormat
from minift.tokenizers.tokenizer_class import resolve
from minift.tokenizers.tokenizer_json import check_top, of_merges, template_of
from minift.tokenizers.vocabulary import field_of, one_of
from minift.tokenizers.wordpiece import WordPiece
from minift.tokenizers.wordpiece_json import of_lines

KINDS: dict[type, str] = {
    ByteBPE: "byte-level BPE",
    WordPiece: "WordPiece",
    SentencePiece: "sentencepiece",
}
LIMIT = 64 << 20  # bytes of any of its files
CONFIG_LIMIT = 16 << 20  # of those beside it: published ones list 6,400 added tokens in a megabyte
NEEDED = "a tokenizer.json, a tokenizer.model, a vocab.json with its merges.txt, or a vocab.txt"


def tokenizer_in(folder: Path, family: str | None = None) -> Tokenizer:
    """The tokenizer of a Hugging Face folder.

    tokenizer.json says which it is; a tokenizer.model serves where there is none. Folders of older
    times have a vocab.json with a merges.txt, or a vocab.txt.
    """
    path, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    beside = beside_in(folder, family)
    if not os.path.exists(path):
        return without_json(folder, beside)
    data: Mapping[str, Any] = strict_json.read(path, limit_bytes=LIMIT)
    check_top(data, str(path))
    data, beside = fitting(data, beside, str(path))
    model = field_of(data, "model", dict, str(path))
    # Old files leave the type out: only WordPiece has a longest word.
    usual = "WordPiece" if "max_input_chars_per_word" in model else "BPE"
    known = {"BPE": ByteBPE, "WordPiece": WordPiece}
    if os.path.exists(pieces):
        known["Unigram"] = SentencePiece
    kind = one_of(model.get("type", usual), known, str(path), "model.type")
    if is_pieces(data):
        return SentencePiece.from_json(data, with_family(beside), str(path), added=beside.added)
    if kind is SentencePiece:
        return sentencepiece_in(folder, beside)
    return kind.from_json(*resolve(data, beside, str(path)), str(path))


def without_json(folder: Path, beside: Beside) -> Tokenizer:
    """The tokenizer of a folder that has no tokenizer.json."""
    vocab, merges, words = folder / "vocab.json", folder / "merges.txt", folder / "vocab.txt"
    if os.path.exists(folder / "tokenizer.model"):
        return sentencepiece_in(folder, beside)
    if os.path.exists(vocab) and os.path.exists(merges):
        ids = strict_json.read(vocab, limit_bytes=LIMIT)
        data = of_merges(ids, text_in(merges), str(merges))
        return ByteBPE.from_json(*resolve(data, beside, str(vocab), whole=False), str(vocab))
    if os.path.exists(words):
        data = of_lines(text_in(words))
        return WordPiece.from_json(*resolve(data, beside, str(words), whole=False), str(words))
    raise FormatError(folder, "tokenizer", "no tokenizer.json", NEEDED, "bad-path")


def beside_in(folder: Path, family: str | None = None) -> Beside:
    """The files beside a vocabulary, and the chat template that may stand in one of its own.

    `family` is the model's, where config.json names none.
    """

    def read(name: str, limit_bytes: int = CONFIG_LIMIT) -> dict[str, Any] | None:
        path = folder / name
        return strict_json.read(path, limit_bytes=limit_bytes) if os.path.exists(path) else None

    config = read(CONFIG)
    if os.path.exists(template := folder / "chat_template.jinja"):
        config = (config or {}) | {"chat_template": text_in(template)}
    elif (config or {}).get("chat_template") is None and (other := read("chat_template.json")):
        config = (config or {}) | {"chat_template": other.get("chat_template")}
    model = {"model_type": family} | (read("config.json", strict_json.CONFIG_LIMIT) or {})
    return Beside(str(folder), config, read(MAP), read(ADDED), model)


def sentencepiece_in(folder: Path, beside: Beside) -> SentencePiece:
    """The tokenizer of a tokenizer.model."""
    path = folder / "tokenizer.model"
    raw = bytes_in(path)
    _, beside = fitting({}, beside, str(path))
    return SentencePiece.from_model(raw, with_family(beside), str(path), added=beside.added)


def with_family(beside: Beside) -> dict[str, Any]:
    """tokenizer_config.json, with the family and the end of text that config.json names."""
    ids = beside.model.get("eos_token_id")
    end = ids[0] if isinstance(ids, list) and ids else ids
    family = {"model_type": beside.model.get("model_type"), "eos_token_id": end}
    return (beside.settings() or {}) | family


def tokenizer_of(metadata: Mapping[str, Any], path: str) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file."""
    where = "tokenizer.ggml.model"
    known = {"gpt2": ByteBPE, "llama": SentencePiece}
    tokenizer: Tokenizer = one_of(
        field_of(metadata, where, str, path), known, path, where
    ).from_gguf(metadata, path)
    eot = field_of(metadata, "tokenizer.ggml.eot_token_id", int, path, none=True)
    eom = field_of(metadata, "tokenizer.ggml.eom_token_id", int, path, none=True)
    tokenizer.also_ends = ends_within(tokenizer, [eot, eom])
    return tokenizer


def ends_in(folder: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that generation_config.json, or else config.json, lets a text end with."""
    for name in ("generation_config.json", "config.json"):  # the first that says it counts
        found = None
        if os.path.exists(folder / name):
            found = strict_json.read(folder / name).get("eos_token_id")
        if found is not None:
            return ends_within(tokenizer, found if type(found) is list else [found])
    return frozenset()


def ends_within(tokenizer: Tokenizer, ids: Iterable[object]) -> frozenset[int]:
    """Of these ids those that the vocabulary has: published files name others, too."""
    return frozenset(i for i in ids if type(i) is int and 0 <= i < tokenizer.vocab_size)


def template_in(folder: Path) -> str | None:
    """The chat template in a folder without a vocabulary, such as an adapter's."""
    config = beside_in(folder).config or {}
    return template_of(config.get("chat_template"), str(folder / CONFIG))


def text_format_of(metadata: Mapping[str, Any], path: str) -> TextFormat | None:
    """What a GGUF file says of the run that trained it."""
    text = field_of(metadata, text_format.KEY, str, path, none=True)
    if text is None:
        return None
    data = strict_json.parse(text.encode(), path, text_format.KEY, limit_bytes=CONFIG_LIMIT)
    return TextFormat.from_json(data, path)


def text_format_in(folder: Path) -> TextFormat | None:
    """What minift.json says; None where there is none."""
    path = folder / text_format.FILE
    if not os.path.exists(path):
        return None
    data = strict_json.read(path, limit_bytes=CONFIG_LIMIT)
    return TextFormat.from_json(data["texts"], str(path)) if "texts" in data else None


def bytes_in(path: Path) -> bytes:
    raw = read_file(path, limit_bytes=LIMIT)
    placeholder.check(path, raw, empty="")
    return raw


def text_in(path: Path) -> str:
    try:
        return bytes_in(path).decode()
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at {error.start:,}"
        raise FormatError(path, "text", found, "UTF-8", "bad-utf8") from None


def template_name(tokenizer: Tokenizer) -> str:
    """The chat template that came with the model, in words."""
    if tokenizer.template is None:
        return "no template"
    name = chat.name_of(tokenizer)
    if name is not None:
        return name
    refusal = chat.refusal(tokenizer)
    if refusal is not None:
        return f"a template that minift does not read ({refusal}): needs --chat-template"
    return "the model's own template"
