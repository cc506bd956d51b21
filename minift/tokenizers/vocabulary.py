"""What the file of a byte-level BPE says, checked: from GGUF metadata, from and to tokenizer.json.

A file can ask for much that minift does not do (other models, normalizers, patterns). Everything
is compared with what is known here, and what is not is a FormatError, never ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minift.errors import FormatError
from minift.tokenizers.split import LLAMA3, QWEN2

MOST_TOKENS = 4_000_000
LONGEST_TOKEN = 65_536  # bytes

# tokenizer.ggml.pre -> our pattern.
GGUF_PATTERNS = {
    "gpt-2": "gpt2",
    "gpt2": "gpt2",
    "smollm": "smollm",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "qwen2": "qwen2",
}
# tokenizer.ggml.token_type. 5 is a token that nobody uses, which is an ordinary one here.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token


@dataclass(frozen=True)
class Added:
    """A token that no merge makes. A special one has a meaning, and is never found in a text."""

    text: str
    special: bool = True
    flags: tuple[str, ...] = ()  # those of FLAGS that the file sets, kept for saving


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, merges by rank, and what stands beside them."""

    tokens: list[str]  # in the byte alphabet (byte_bpe.py); an added token in its own text
    merges: list[tuple[str, str]]
    added: dict[int, Added]
    pattern: str  # a key of split.PATTERNS
    eos: int
    bos: int | None = None
    pad: int | None = None
    unk: int | None = None
    add_bos: bool = False
    nfc: bool = False  # Unicode normalization before everything else
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    template: str | None = None  # the Jinja text of the chat template
    places: dict[str, str] = field(default_factory=dict)  # where errors say that a part stands


def _take(
    mapping: Mapping[str, Any], key: str, kind: type, path: str, *, at: str = "", none: bool = False
) -> Any:
    """`mapping[key]`, of exactly this type (True is no int); or None, if that is allowed."""
    if key not in mapping and not none:
        raise FormatError(path, at + key, "nothing", kind.__name__, "missing-field")
    value = mapping.get(key)
    if type(value) is not kind and not (none and value is None):
        raise FormatError(path, at + key, value, kind.__name__, "bad-type")
    return value


def _known(value: object, allowed: Mapping[str, Any], path: str, where: str) -> Any:
    if type(value) is str and value in allowed:
        return allowed[value]
    raise FormatError(path, where, value, "one of " + ", ".join(allowed), "unknown-field")


def from_gguf(metadata: Mapping[str, Any], path: str) -> Vocabulary:
    """The vocabulary in the metadata of a GGUF file, `tokenizer.ggml.*`."""
    at = "tokenizer.ggml."

    def take(key: str, kind: type, none: bool = False) -> Any:
        return _take(metadata, at + key, kind, path, none=none)

    _known(take("model", str), {"gpt2": None}, path, at + "model")
    pattern = _known(take("pre", str), GGUF_PATTERNS, path, at + "pre")
    tokens, types, merges = take("tokens", list), take("token_type", list), take("merges", list)
    if len(types) != len(tokens):
        allowed = f"{len(tokens)}, one a token"
        raise FormatError(path, at + "token_type", len(types), allowed, "shape-mismatch")
    added = {}
    for i, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if type(kind) is not int or not NORMAL <= kind <= UNUSED:
            raise FormatError(path, f"{at}token_type[{i}]", kind, "1 to 5", "out-of-range")
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            added[i] = Added(text, special=kind != USER_DEFINED)
    return Vocabulary(
        tokens=tokens,
        merges=[_pair(merge, path, f"{at}merges[{i}]") for i, merge in enumerate(merges)],
        added=added,
        pattern=pattern,
        eos=take("eos_token_id", int),
        bos=take("bos_token_id", int, none=True),
        pad=take("padding_token_id", int, none=True),
        unk=take("unknown_token_id", int, none=True),
        add_bos=bool(take("add_bos_token", bool, none=True)),
        # The format has no field for these two: they belong to the families of these patterns.
        nfc=pattern == "qwen2",
        ignore_merges=pattern == "llama3",
        template=_take(metadata, "tokenizer.chat_template", str, path, none=True),
        places={"tokens": at + "tokens", "merges": at + "merges"}
        | {"eos": at + "eos_token_id", "bos": at + "bos_token_id"}
        | {"pad": at + "padding_token_id", "unk": at + "unknown_token_id"},
    )


def _pair(merge: object, path: str, where: str) -> tuple[str, str]:
    """A merge, which is written "a b" or ["a", "b"]."""
    parts = merge.split(" ") if type(merge) is str else merge
    if type(parts) is not list or len(parts) != 2 or not all(type(p) is str and p for p in parts):
        raise FormatError(path, where, merge, "two parts", "bad-type")
    return parts[0], parts[1]


def from_json(data: Mapping[str, Any], config: Mapping[str, Any] | None, path: str) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json; the roles of its tokens are in `config`.

    Without `config` (tokenizer_config.json) the file must have exactly one special token, which
    then is the end of text. `truncation` and `padding` are ignored: they belong to batches.
    """
    top = "version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder"
    _refuse_unknown(data, (*top.split(), "model"), path, "")
    model = _take(data, "model", dict, path)
    at = "model."
    plain = {"unk_token": None, "dropout": None, "byte_fallback": False, "fuse_unk": False}
    plain |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    _refuse_unknown(model, ("type", "vocab", "merges", "ignore_merges", *plain), path, at)
    _known(model.get("type", "BPE"), {"BPE": None}, path, at + "type")
    for key, usual in plain.items():
        value = model.get(key)
        if value is not None and value != usual and key not in ("unk_token", "fuse_unk"):
            raise FormatError(path, at + key, value, json.dumps(usual), "unknown-field")
    ids = _take(model, "vocab", dict, path, at=at)
    added = _added_tokens(data.get("added_tokens") or [], ids, path)
    decoder = _take(data, "decoder", dict, path)
    _known(decoder.get("type"), {"ByteLevel": None}, path, "decoder.type")
    normalizer = _take(data, "normalizer", dict, path, none=True)
    if normalizer is not None:
        _known(normalizer.get("type"), {"NFC": None}, path, "normalizer.type")
    merges = _take(model, "merges", list, path, at=at)

    settings = dict(config or {})
    settings_path = os.path.join(os.path.dirname(path), "tokenizer_config.json")
    special = {token.text: i for i, token in added.items() if token.special}
    if config is None and len(special) == 1:
        settings["eos_token"] = next(iter(special))
    roles = {
        role: _role(settings.get(role + "_token"), role, ids, added, settings_path)
        for role in ("eos", "bos", "pad", "unk")
    }
    if roles["eos"] is None:
        raise FormatError(settings_path, "eos_token", "nothing", "a token", "missing-field")
    starts = _post_processor(data.get("post_processor"), special, path)
    if starts is not None and starts != roles["bos"]:
        allowed = f"only the BOS token, {roles['bos']}"
        raise FormatError(path, "post_processor", starts, allowed, "unknown-field")
    add_bos = _take(settings, "add_bos_token", bool, settings_path, none=True)
    return Vocabulary(
        tokens=_by_id(ids, added, path),
        merges=[_pair(merge, path, f"model.merges[{i}]") for i, merge in enumerate(merges)],
        added=added,
        pattern=_pattern(data.get("pre_tokenizer"), path),
        **roles,
        add_bos=bool(add_bos) or starts is not None,
        nfc=normalizer is not None,
        ignore_merges=bool(_take(model, "ignore_merges", bool, path, at=at, none=True)),
        template=_chat_template(settings.get("chat_template"), settings_path),
        places={"tokens": "model.vocab", "merges": "model.merges"}
        | {role: f"{role}_token" for role in roles},
    )


def _refuse_unknown(mapping: Mapping[str, Any], known: tuple[str, ...], path: str, at: str) -> None:
    for key in mapping:
        if key not in known:
            raise FormatError(path, at + key, "an unknown field", ", ".join(known), "unknown-field")


def _added_tokens(rows: object, ids: Mapping[str, Any], path: str) -> dict[int, Added]:
    if type(rows) is not list:
        raise FormatError(path, "added_tokens", rows, "a list", "bad-type")
    added: dict[int, Added] = {}
    taken: dict[str, int] = {}
    for n, row in enumerate(rows):
        at = f"added_tokens[{n}]."
        if type(row) is not dict:
            raise FormatError(path, at[:-1], row, "an object", "bad-type")
        _refuse_unknown(row, ("id", "content", "special", *FLAGS), path, at)
        i, text = _take(row, "id", int, path, at=at), _take(row, "content", str, path, at=at)
        if not text:
            raise FormatError(path, at + "content", text, "at least one character", "out-of-range")
        if i in added or text in taken:
            raise FormatError(path, at[:-1], f"{i} {text!r} again", "each once", "dup-key")
        if ids.get(text, i) != i:
            allowed = f"{ids[text]}, its id in model.vocab"
            raise FormatError(path, at + "id", i, allowed, "dup-key")
        special = _take(row, "special", bool, path, at=at)
        flags = tuple(f for f in FLAGS if _take(row, f, bool, path, at=at, none=True))
        if not special and set(flags) - {"normalized"}:
            raise FormatError(path, at + flags[0], True, "false", "unknown-field")
        added[i] = Added(text, special, flags)
        taken[text] = i
    return added


def _by_id(ids: Mapping[str, Any], added: Mapping[int, Added], path: str) -> list[str]:
    """Tokens in the order of their ids, which must be 0 to n-1, each once."""
    extra = {i: token.text for i, token in added.items() if token.text not in ids}
    size = len(ids) + len(extra)
    tokens: list[str | None] = [None] * size
    rows = [(text, i, f'model.vocab["{text}"]') for text, i in ids.items()]
    rows += [(text, i, f'added_tokens "{text}"') for i, text in extra.items()]
    for text, i, where in rows:
        if type(i) is not int:
            raise FormatError(path, where, i, "int", "bad-type")
        if not 0 <= i < size:
            raise FormatError(path, where, i, f"0 to {size - 1:,}, each once", "out-of-range")
        if tokens[i] is not None:
            raise FormatError(path, where, f"{i} again, of {tokens[i]!r}", "each once", "dup-key")
        tokens[i] = text
    return [text for text in tokens if text is not None]  # all of them: size ids, each once


def _role(
    value: object, role: str, ids: Mapping[str, int], added: Mapping[int, Added], path: str
) -> int | None:
    """The id of the token that tokenizer_config.json names as eos, bos, pad or unk."""
    if value is None:
        return None
    text = value.get("content") if isinstance(value, dict) else value
    found = next((i for i, token in added.items() if token.text == text), None)
    if found is None and type(text) is str:
        found = ids.get(text)
    if found is None:
        raise FormatError(path, f"{role}_token", text, "a token of the vocabulary", "out-of-range")
    return found


def _post_processor(value: Any, special: Mapping[str, int], path: str) -> int | None:
    """The id that the file puts before every text, if it does."""
    if value is None:
        return None
    where = "post_processor"
    if type(value) is not dict:
        raise FormatError(path, where, value, "an object", "bad-type")
    known = {"ByteLevel": 0, "TemplateProcessing": 1, "Sequence": 2}
    kind = _known(value.get("type"), known, path, where + ".type")
    if kind == 0:
        return None
    if kind == 2:
        steps = _take(value, "processors", list, path, at=where + ".")
        if any(type(step) is dict and step.get("type") == "Sequence" for step in steps):
            raise FormatError(path, where, "a Sequence in a Sequence", "none", "unknown-field")
        found = [_post_processor(step, special, path) for step in steps]
        return next((i for i in found if i is not None), None)
    match value.get("single"):
        case [{"Sequence": {"id": "A"}}]:
            return None
        case [{"SpecialToken": {"id": str(text)}}, {"Sequence": {"id": "A"}}] if text in special:
            return special[text]
    allowed = "the text, after one special token at most"
    raise FormatError(path, where + ".single", value.get("single"), allowed, "unknown-field")


def _pre_tokenizers() -> dict[str, dict[str, Any]]:
    """How tokenizer.json writes each of our patterns."""

    def byte_level(use_regex: bool) -> dict[str, Any]:
        return {
            "type": "ByteLevel",
            "add_prefix_space": False,
            "trim_offsets": True,
            "use_regex": use_regex,
        }

    def sequence(first: dict[str, Any], use_regex: bool) -> dict[str, Any]:
        return {"type": "Sequence", "pretokenizers": [first, byte_level(use_regex)]}

    def split(published: str) -> dict[str, Any]:
        known = {"Regex": published}
        return {"type": "Split", "pattern": known, "behavior": "Isolated", "invert": False}

    return {
        "gpt2": byte_level(True),
        "smollm": sequence({"type": "Digits", "individual_digits": True}, True),
        "llama3": sequence(split(LLAMA3), False),
        "qwen2": sequence(split(QWEN2), False),
    }


def _pattern(value: Any, path: str) -> str:
    """The name of the pattern that `pre_tokenizer` asks for; it is compared, never compiled."""

    def shape(step: Any) -> Any:
        if type(step) is not dict:
            return step
        kept = {k: v for k, v in step.items() if k != "trim_offsets"}  # of no effect on ids
        if kept.get("type") == "ByteLevel":
            kept.setdefault("use_regex", True)
        if type(kept.get("pretokenizers")) is list:
            kept["pretokenizers"] = [shape(inner) for inner in kept["pretokenizers"]]
        return kept

    asked = shape(value)
    for name, known in _pre_tokenizers().items():
        if asked == shape(known):
            return name
    known_names = "the known forms of " + ", ".join(_pre_tokenizers())
    raise FormatError(path, "pre_tokenizer", value, known_names, "unsafe")


def _chat_template(value: object, path: str) -> str | None:
    """The template's text; of a list of named ones, the default."""
    if value is None or type(value) is str:
        return value
    if isinstance(value, list):
        for row in value:
            match row:
                case {"name": "default", "template": str(text)}:
                    return text
    raise FormatError(path, "chat_template", value, "a text, or a list with a default", "bad-type")


def to_files(v: Vocabulary, template: str | None) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json of a Hugging Face folder: the same ids there."""

    def name(i: int | None) -> str | None:
        return None if i is None else v.tokens[i]

    added = [
        {"id": i, "content": token.text}
        | {flag: flag in token.flags for flag in FLAGS}
        | {"special": token.special}
        for i, token in sorted(v.added.items())
    ]
    byte_level = _pre_tokenizers()["gpt2"]
    post: dict[str, Any] = dict(byte_level)
    if v.add_bos and v.bos is not None:
        bos, text = v.tokens[v.bos], {"id": "A", "type_id": 0}
        single = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": text}]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
        tokens = {bos: {"id": bos, "ids": [v.bos], "tokens": [bos]}}
        post = {"type": "TemplateProcessing", "single": single, "pair": pair}
        post["special_tokens"] = tokens
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if v.nfc else None,
        "pre_tokenizer": _pre_tokenizers()[v.pattern],
        "post_processor": post,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": v.ignore_merges,
            "vocab": {text: i for i, text in enumerate(v.tokens)},
            "merges": v.merges,
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": v.add_bos,
        "bos_token": name(v.bos),
        "eos_token": name(v.eos),
        "pad_token": name(v.pad),
        "unk_token": name(v.unk),
        "clean_up_tokenization_spaces": False,
    }
    if template is not None:
        config["chat_template"] = template
    return {
        "tokenizer.json": (json.dumps(tokenizer, ensure_ascii=False) + "\n").encode(),
        "tokenizer_config.json": (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode(),
    }
