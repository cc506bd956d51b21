"""The files of a WordPiece vocabulary: tokenizer.json both ways, and the lines of a vocab.txt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from minift.errors import FormatError
from minift.tokenizers import post_processor
from minift.tokenizers.tokenizer_json import added_tokens, by_id, check_top
from minift.tokenizers.tokens import WHITE
from minift.tokenizers.vocabulary import Added, added_rows, field_of, one_of
from minift.tokenizers.wrapping import Wrapping, around

LONGEST_WORD = 1000  # characters, that a file may ask for: matching takes their square
SPECIAL = ("unk", "cls", "sep", "pad", "mask")


@dataclass(frozen=True)
class Settings:
    """What a file asks for."""

    clean: bool = True
    cjk: bool = True
    lower: bool = True
    accents_off: bool | None = None  # None: where the case is lowered
    prefix: str = "##"
    longest_word: int = 100  # characters; a longer one is unknown
    clean_up: bool = True

    @property
    def strips(self) -> bool:
        return self.lower if self.accents_off is None else self.accents_off


@dataclass(frozen=True)
class WordVocabulary:
    """Tokens by id, and what stands beside them."""

    tokens: list[str]
    roles: Mapping[str, int]  # unk, cls and sep; pad and mask where there is one
    settings: Settings
    added: Mapping[int, Added]  # the special tokens, and those that are found in texts
    wrapping: Wrapping
    outside: frozenset[int]  # added tokens that are no pieces of words


def from_json(data: Mapping[str, Any], config: Mapping[str, Any], path: str) -> WordVocabulary:
    """The vocabulary of a parsed tokenizer.json; every part of it is one that is known here."""
    check_top(data, path)
    model = field_of(data, "model", dict, path)
    one_of(model.get("type", "WordPiece"), {"WordPiece": None}, path, "model.type")
    known = ("type", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word")
    for key in model:
        if key not in (*known, "vocab"):
            raise FormatError(path, f"model.{key}", key, ", ".join(known), "unknown-field")
    normal = field_of(data, "normalizer", dict, path)
    one_of(normal.get("type"), {"BertNormalizer": None}, path, "normalizer.type")
    before = field_of(data, "pre_tokenizer", dict, path)
    one_of(before.get("type"), {"BertPreTokenizer": None}, path, "pre_tokenizer.type")
    decoder = field_of(data, "decoder", dict, path)
    one_of(decoder.get("type"), {"WordPiece": None}, path, "decoder.type")
    at = "normalizer."
    settings = Settings(
        clean=field_of(normal, "clean_text", bool, path, at=at),
        cjk=field_of(normal, "handle_chinese_chars", bool, path, at=at),
        lower=field_of(normal, "lowercase", bool, path, at=at),
        accents_off=field_of(normal, "strip_accents", bool, path, at=at, none=True),
        prefix=field_of(model, "continuing_subword_prefix", str, path, at="model."),
        longest_word=field_of(model, "max_input_chars_per_word", int, path, at="model."),
        clean_up=field_of(decoder, "cleanup", bool, path, at="decoder."),
    )
    if not 1 <= settings.longest_word <= LONGEST_WORD:
        where, allowed = "model.max_input_chars_per_word", f"1 to {LONGEST_WORD:,}"
        raise FormatError(path, where, settings.longest_word, allowed, "limit")
    if decoder.get("prefix", settings.prefix) != settings.prefix:
        where, allowed = "decoder.prefix", f"{settings.prefix}, as in the model"
        raise FormatError(path, where, decoder["prefix"], allowed, "unknown-field")
    ids = field_of(model, "vocab", dict, path, at="model.")
    added = added_tokens(data.get("added_tokens", []), ids, path)
    tokens = by_id(ids, added, path)
    roles = roles_of(tokens, config, path)
    unknown = tokens[roles["unk"]]
    if model.get("unk_token", unknown) != unknown:
        where, allowed = "model.unk_token", f"{unknown}, as the configuration says"
        raise FormatError(path, where, model["unk_token"], allowed, "unknown-field")
    special = {tokens[i]: i for i in roles.values()}
    special |= {token.text: i for i, token in added.items() if token.special}
    wrapping = post_processor.wrapping_of(data.get("post_processor"), special, path)
    return WordVocabulary(
        tokens=tokens,
        roles=roles,
        settings=settings,
        added=added,
        wrapping=wrapping or around(roles["cls"], roles["sep"]),
        outside=frozenset(i for i, token in added.items() if token.text not in ids),
    )


def of_lines(text: str) -> dict[str, Any]:
    """A vocab.txt, one token a line, as the part of a tokenizer.json that it is.

    Of a token that is there twice the last line counts, and a line of white space is no token.
    """
    # TRAP: not splitlines, which also cuts at characters that can be tokens (U+2028, say).
    lines = text.removesuffix("\n").split("\n")
    white = "".join(WHITE)
    vocab = {token: i for i, line in enumerate(lines) if (token := line.rstrip(white))}
    return {"version": "1.0", "model": {"type": "WordPiece", "vocab": vocab}}


def roles_of(tokens: Sequence[str], config: Mapping[str, Any], path: str) -> dict[str, int]:
    """The ids of [UNK], [CLS], [SEP], [PAD] and [MASK], or of what the configuration names."""
    ids = {text: i for i, text in enumerate(tokens)}
    roles = {}
    for role in SPECIAL:
        named = config.get(f"{role}_token")
        named = f"[{role.upper()}]" if named is None else named
        text = named.get("content") if isinstance(named, dict) else named
        if isinstance(text, str) and text in ids:
            roles[role] = ids[text]
        elif role != "mask":
            allowed = "a token of the vocabulary"
            raise FormatError(path, f"{role}_token", text, allowed, "missing-field")
    return roles


def to_files(v: WordVocabulary) -> dict[str, bytes]:
    settings, tokens = v.settings, v.tokens
    names = {role: tokens[v.roles[role]] for role in SPECIAL if role in v.roles}
    added = {i: Added(tokens[i]) for i in v.roles.values()} | dict(v.added)
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_rows(added),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": settings.clean,
            "handle_chinese_chars": settings.cjk,
            "strip_accents": settings.accents_off,
            "lowercase": settings.lower,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": post_processor.to_json(v.wrapping, tokens),
        "decoder": {"type": "WordPiece", "prefix": settings.prefix, "cleanup": settings.clean_up},
        "model": {
            "type": "WordPiece",
            "unk_token": names["unk"],
            "continuing_subword_prefix": settings.prefix,
            "max_input_chars_per_word": settings.longest_word,
            "vocab": {token: i for i, token in enumerate(tokens) if i not in v.outside},
        },
    }
    whole = replace(settings, cjk=True, lower=True, accents_off=None) == Settings()
    is_bert = whole and v.wrapping == around(v.roles["cls"], v.roles["sep"])
    pieces = tokens[: min(v.outside)] if v.outside else tokens
    config = {
        # The class of BERT would read a tokenizer.json that says something else in its own way.
        "tokenizer_class": "BertTokenizer" if is_bert else "PreTrainedTokenizerFast",
        "do_lower_case": settings.lower,
        "strip_accents": settings.accents_off,
        "tokenize_chinese_chars": settings.cjk,
        **{f"{role}_token": name for role, name in names.items()},
    }
    return {
        "tokenizer.json": (json.dumps(data, ensure_ascii=False) + "\n").encode(),
        "tokenizer_config.json": (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode(),
        "vocab.txt": ("\n".join(pieces) + "\n").encode(),
    }
