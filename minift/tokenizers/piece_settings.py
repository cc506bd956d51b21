"""What stands beside the pieces of a sentencepiece model: which token ends a text, and so on.

Here from tokenizer_config.json and added_tokens.json; with the pieces, GGUF metadata both ways.
"""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minift.errors import ConfigError, FormatError, notice
from minift.tokenizers import piece_model
from minift.tokenizers.piece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    ROLES,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    PieceModel,
)
from minift.tokenizers.tokenizer_json import role_of, template_of
from minift.tokenizers.vocabulary import FLAGS, LONGEST_TOKEN, MOST_TOKENS, Added, field_of
from minift.tokenizers.wrapping import Wrapping, after, ended

# The tokens of Gemma's class, where no file names them.
GEMMA_ROLES = {"unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "pad": "<pad>"}
OWN = "minift.tokenizer."  # metadata that other programs pass over
REBUILT = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
MISTRAL = ("mistral", "qwen2")  # in config.json
LEAST = -10_000.0  # the score of a token that no merge makes


@dataclass(frozen=True)
class Settings:
    """What stands beside the pieces."""

    eos: int
    bos: int | None = None
    pad: int | None = None
    add_bos: bool = False
    legacy: bool = True  # a part after a special token begins with a space, as a text does
    prefix: bool = True  # False: no space before a text, whatever the model says
    once: bool = False  # a text that begins with a space gets no other
    wrapping: Wrapping | None = None  # around texts; None: BOS before them, if add_bos
    template: str | None = None  # the Jinja text of the chat template
    special: frozenset[int] = frozenset()  # beyond the pieces of types control and unknown
    found: Mapping[int, Added] = field(default_factory=dict)  # pieces that are looked for in texts
    added: Mapping[int, Added] = field(default_factory=dict)  # whose ids follow those of the pieces


def scheme_of(config: Mapping[str, Any], path: str) -> str | None:
    """When a text gets a space first, if the class that tokenizer_config.json names decides it.

    transformers 5 makes these classes anew from vocabulary and merges, whatever tokenizer.json says
    of spaces: at the start of a text ("first"), of every part between special tokens ("always"), or
    never. Where `model_type` is one of MISTRAL, it takes the file at its word.
    """
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    if name not in REBUILT or config.get("model_type") in MISTRAL:
        return None
    legacy = field_of(config, "legacy", bool, path, none=True)
    spaced = field_of(config, "add_prefix_space", bool, path, none=True) is not False
    if name == "GemmaTokenizer" or not spaced:
        return "never"
    return "always" if legacy and name == "LlamaTokenizer" else "first"


def from_config(
    model: PieceModel, config: Mapping[str, Any], more: Mapping[str, Any], model_path: str
) -> Settings:
    """What tokenizer_config.json and added_tokens.json say of this vocabulary."""
    path = os.path.join(os.path.dirname(model_path), "tokenizer_config.json")
    ids = {text: i for i, text in enumerate(model.pieces)}
    added, special, found = _added_tokens(model, ids, config, more, path)
    ids |= {token.text: i for i, token in added.items()}
    roles: dict[str, int | None] = {}
    gemma = str(config.get("model_type")).startswith("gemma")
    for role, name in (GEMMA_ROLES if gemma else model.roles).items():
        key = role + "_token"
        own = ids.get(name)
        if config.get(key) not in (None, ""):  # an empty text names no token
            roles[role] = role_of(config[key], role, ids, added, path)
        elif own is not None and own < len(model.types) and model.types[own] == CONTROL:
            roles[role] = None if key in config and role != "eos" else own
    eos = roles.get("eos")
    if eos is None and type(end := config.get("eos_token_id")) is int and 0 <= end < len(ids):
        eos = end
        notice(path, f"no file names an eos_token: {end:,}, as config.json says")
    if eos is None:
        raise FormatError(path, "eos_token", "nothing", "a token", "missing-field")
    special |= {i for role, i in roles.items() if i is not None and role != "unk"}
    add_bos = field_of(config, "add_bos_token", bool, path, none=True)
    usual = roles.get("bos") is not None and roles["bos"] in (
        ids.get(model.roles["bos"]),
        ids.get(GEMMA_ROLES["bos"]),
    )
    plain = not (model.unigram or model.table or model.trim_spaces)
    scheme = scheme_of(config, path) if plain else None
    legacy = field_of(config, "legacy", bool, path, none=True) is not False
    prefix = field_of(config, "add_prefix_space", bool, path, none=True) is not False
    return Settings(
        eos=eos,
        bos=roles.get("bos"),
        pad=roles.get("pad"),
        add_bos=usual if add_bos is None else add_bos,
        legacy=scheme != "first" if scheme else legacy,
        prefix=scheme != "never" if scheme else prefix,
        once=scheme is not None or not legacy,
        template=template_of(config.get("chat_template"), path),
        special=frozenset(special),
        found={i: token for i, token in found.items() if i not in special},
        added=added,
    )


def _added_tokens(
    model: PieceModel,
    ids: Mapping[str, int],
    config: Mapping[str, Any],
    more: Mapping[str, Any],
    path: str,
) -> tuple[dict[int, Added], set[int], dict[int, Added]]:
    """Tokens after the pieces, and which pieces are special, and which are found in any text."""
    named = config.get("additional_special_tokens") or []
    if type(named) is not list:
        raise FormatError(path, "additional_special_tokens", named, "a list", "bad-type")
    named = [row.get("content") if isinstance(row, dict) else row for row in named]
    named += [config.get(role + "_token") for role in ("eos", "bos", "pad", "unk")]
    named = [row.get("content") if isinstance(row, dict) else row for row in named]
    rows: list[tuple[str, object, Added]] = []
    decoder = field_of(config, "added_tokens_decoder", dict, path, none=True) or {}
    for key, row in decoder.items():
        at = f"added_tokens_decoder.{key}"
        if type(row) is not dict:
            raise FormatError(path, at, row, "an object", "bad-type")
        text = field_of(row, "content", str, path, at=at + ".")
        flags = tuple(f for f in FLAGS if field_of(row, f, bool, path, at=at + ".", none=True))
        hidden = bool(field_of(row, "special", bool, path, at=at + ".", none=True))
        i = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else key
        rows.append((at, i, Added(text, hidden, flags)))
    for text, i in more.items():
        rows.append((f'added_tokens.json "{text}"', i, Added(text, text in named)))

    size = len(model.pieces)
    added: dict[int, Added] = {}
    special = {ids[t] for t in named if type(t) is str and t in ids}
    found: dict[int, Added] = {}
    taken: set[str] = set()
    for at, i, token in rows:
        if type(i) is not int or not 0 <= i < MOST_TOKENS:
            raise FormatError(path, at, i, f"an id, 0 to {MOST_TOKENS - 1:,}", "out-of-range")
        try:
            length = len(token.text.encode())
        except UnicodeEncodeError:
            raise FormatError(path, at, token.text, "valid Unicode", "bad-utf8") from None
        if not 1 <= length <= LONGEST_TOKEN:
            allowed = f"1 to {LONGEST_TOKEN:,} bytes"
            raise FormatError(path, at, f"{length:,} bytes", allowed, "out-of-range")
        if i < size:
            if model.pieces[i] != token.text:
                allowed = f"{model.pieces[i]!r}, the piece {i}"
                raise FormatError(path, at, token.text, allowed, "dup-key")
            if token.special:
                special.add(i)
            else:
                found[i] = token
        elif i not in added:
            if token.text in ids or token.text in taken:
                raise FormatError(path, at, f"{token.text!r} again", "each once", "dup-key")
            added[i] = token
            taken.add(token.text)
        elif added[i].text != token.text:
            raise FormatError(path, at, token.text, repr(added[i].text), "dup-key")
    for n, i in enumerate(sorted(added)):
        if i != size + n:
            allowed = f"{size + n:,}, the next after the vocabulary"
            raise FormatError(path, "added tokens", f"id {i:,}", allowed, "hole")
    return added, special, found


def from_gguf(metadata: Mapping[str, Any], path: str) -> tuple[PieceModel, Settings]:
    """Pieces, scores and types of `tokenizer.ggml.*`, with the defaults of llama.cpp."""
    at = "tokenizer.ggml."

    def take(key: str, kind: type, none: bool = False) -> Any:
        return field_of(metadata, at + key, kind, path, none=none)

    if take("model", str) != "llama":
        raise FormatError(path, at + "model", metadata[at + "model"], "llama", "unknown-field")
    tokens = take("tokens", list)
    scores, types = take("scores", list, none=True), take("token_type", list, none=True)
    scores = [0.0] * len(tokens) if scores is None else scores
    types = [NORMAL] * len(tokens) if types is None else types
    for name, values in (("scores", scores), ("token_type", types)):
        if len(values) != len(tokens):
            allowed = f"{len(tokens)}, one a token"
            raise FormatError(path, at + name, len(values), allowed, "shape-mismatch")
    if len(tokens) > MOST_TOKENS:
        raise FormatError(path, at + "tokens", len(tokens), f"at most {MOST_TOKENS:,}", "limit")
    for i, (text, score, kind) in enumerate(zip(tokens, scores, types, strict=True)):
        if type(text) is not str:
            raise FormatError(path, f"{at}tokens[{i}]", text, "a text", "bad-type")
        if type(score) not in (int, float) or not math.isfinite(score) or abs(score) > 3e38:
            raise FormatError(path, f"{at}scores[{i}]", score, "a finite number", "out-of-range")
        if type(kind) is not int or not NORMAL <= kind <= BYTE:
            raise FormatError(path, f"{at}token_type[{i}]", kind, "1 to 6", "out-of-range")
    tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]  # as llama.cpp calls them

    def role(key: str, usual: int | None) -> int | None:
        i = take(key, int, none=True)
        if i is None:
            return usual if usual is not None and usual < len(tokens) else None
        if not 0 <= i < len(tokens):
            raise FormatError(path, at + key, i, f"0 to {len(tokens) - 1:,}", "out-of-range")
        return int(i)

    ids = {"bos": role("bos_token_id", 1), "eos": role("eos_token_id", 2)}
    ids |= {"unk": role("unknown_token_id", 0), "pad": role("padding_token_id", None)}
    # Some converters write <unk> as a control token, and others as unknown.
    types = [CONTROL if kind == UNKNOWN else kind for kind in types]
    if ids["unk"] is not None:
        types[ids["unk"]] = UNKNOWN

    def flag(key: str, usual: bool) -> bool:
        value = take(key, bool, none=True)
        return usual if value is None else value

    model = PieceModel(
        pieces=tokens,
        scores=array("f", scores),
        types=bytearray(types),
        byte_fallback=BYTE in types,
        dummy_prefix=flag("add_space_prefix", True),
        roles={r: tokens[i] if i is not None else ROLES[r] for r, i in ids.items()},
    )
    piece_model.check(model, path, at + "tokens")
    special = {i for r, i in ids.items() if i is not None and r != "unk"}
    if ids["eos"] is None:
        raise FormatError(path, at + "eos_token_id", "nothing", "an id", "missing-field")
    user_defined = [i for i, kind in enumerate(types) if kind == USER_DEFINED and i not in special]
    inside = bool(field_of(metadata, OWN + "inside", bool, path, none=True))
    found = {} if inside else {i: Added(tokens[i], special=False) for i in user_defined}
    wrapping = None
    if flag("add_eos_token", False):
        bos = ids["bos"] if flag("add_bos_token", True) else None
        wrapping = ended(after(bos), ids["eos"])
    legacy = field_of(metadata, OWN + "legacy", bool, path, none=True)
    settings = Settings(
        eos=ids["eos"],
        bos=ids["bos"],
        pad=ids["pad"],
        add_bos=flag("add_bos_token", True),
        legacy=legacy is not False,
        once=bool(field_of(metadata, OWN + "once", bool, path, none=True)),
        wrapping=wrapping,
        template=field_of(metadata, "tokenizer.chat_template", str, path, none=True),
        special=frozenset(special),
        found=found,
    )
    return model, settings


def to_gguf(
    model: PieceModel, settings: Settings, template: str | None, size: int
) -> dict[str, Any]:
    """The metadata that `from_gguf` and llama.cpp read, `size` tokens: as many as embedding rows.

    Rows without a token get one that no text has, [PAD0] and so on. llama.cpp knows one kind of
    pieces, BPE with bytes and without rules for the text, and puts a space before every part of a
    text; where the model does so at the start only, a key of minift's own says it.
    """
    late = [token.text for token in (*settings.added.values(), *settings.found.values())
            if not token.special and set(token.flags) - {"normalized"}]  # fmt: skip
    for found, what in (
        (model.unigram, "a unigram model"),
        (model.table, "a table of normalization rules"),
        (model.trim_spaces, "spaces that are trimmed"),
        (not model.byte_fallback, "no pieces for bytes"),
        (settings.bos is None, "no BOS"),
        (late, f"tokens that look at their neighbours ({', '.join(late[:3])})"),
    ):
        if found:
            raise ConfigError(f"gguf: a sentencepiece vocabulary with {what} has no place there")
    at = "tokenizer.ggml."
    more = [settings.added[i].text for i in sorted(settings.added)]
    kinds = [CONTROL if settings.added[i].special else USER_DEFINED for i in sorted(settings.added)]
    # llama.cpp looks for user-defined tokens in the text as it is, where a space is a space.
    own = [USER_DEFINED if i in settings.found else kind for i, kind in enumerate(model.types)]
    user_defined = {i for i, kind in enumerate(own) if kind == USER_DEFINED}
    pieces, taken = list(model.pieces), set(model.pieces)
    for i in user_defined:
        if (spaced := pieces[i].replace(SPACE, " ")) not in taken:
            pieces[i] = spaced
    inside = user_defined - settings.found.keys() and model.dummy_prefix and settings.legacy
    spare = [f"[PAD{i}]" for i in range(size - len(model.pieces) - len(more))]
    data = {
        at + "model": "llama",
        at + "pre": "default",
        at + "tokens": [*pieces, *more, *spare],
        at + "scores": [*model.scores, *(LEAST for _ in (*more, *spare))],
        at + "token_type": [*own, *kinds, *(UNUSED for _ in spare)],
        at + "eos_token_id": settings.eos,
        at + "bos_token_id": settings.bos,
        at + "padding_token_id": settings.pad,
        at + "unknown_token_id": model.types.index(UNKNOWN) if UNKNOWN in model.types else None,
        at + "add_bos_token": settings.add_bos,
        at + "add_space_prefix": model.dummy_prefix,
        OWN + "legacy": None if settings.legacy else False,
        OWN + "once": settings.once or None,
        OWN + "inside": True if inside else None,
        "tokenizer.chat_template": template,
    }
    return {key: value for key, value in data.items() if value is not None}
