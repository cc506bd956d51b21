"""What the file of a byte-level BPE says; here GGUF metadata both ways, or tokenizer_json.py.

A file can ask for much that minift does not do (other models, normalizers, patterns). Everything
is compared with what is known here, and what is not is a FormatError, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from minift.errors import ConfigError, FormatError, notice
from minift.tokenizers.wrapping import Wrapping, after, ended

MOST_TOKENS = 4_000_000
LONGEST_TOKEN = 65_536  # bytes

# tokenizer.ggml.pre -> our pattern, and what the format has no field for: Unicode normalization,
# and whether a word that is a token stays whole. Of equal rows the first is the one written. olmo
# and mpt cut words as GPT-2 does, and have the vocabulary of GPT-NeoX.
GGUF_NAMES = {
    "gpt-2": ("gpt2", False, False),
    "olmo": ("gpt2", True, False),
    "smollm": ("smollm", False, False),
    "llama-bpe": ("llama3", False, True),
    "dbrx": ("llama3", False, False),
    "qwen2": ("qwen2", True, False),
    "stablelm2": ("qwen2", False, False),
    "default": ("default", False, False),
    "mpt": ("gpt2", True, False),
    "command-r": ("smollm", True, False),
    "deepseek-r1-qwen": ("qwen2", True, False),
}
# More names of the same, as llama.cpp has them (llama-vocab.cpp).
SAME = {
    "gpt-2": "gpt2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert "
    "exaone4 jais trillion granite-docling",
    "smollm": "starcoder refact codeshell exaone minerva-7b mellum2",
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "dbrx": "smaug-bpe",
    "stablelm2": "megrez hunyuan solar-open kormo f2llmv2",
}
GGUF_NAMES |= {name: GGUF_NAMES[first] for first, names in SAME.items() for name in names.split()}
WITH_BOS = ("llama-bpe", *SAME["llama-bpe"].split())  # texts begin with BOS, if nothing is said
USUAL_ID = 11  # of BOS and EOS, if nothing is said
# tokenizer.ggml.token_type. 5 is a token that nobody uses, which is an ordinary one here.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5

ROLES = ("eos", "bos", "pad", "unk", "cls", "sep", "mask")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # of an added token


@dataclass(frozen=True)
class Added:
    """A token that no merge makes. A special one has a meaning, and is never found in a text."""

    text: str
    special: bool = True
    flags: tuple[str, ...] = ()  # those of FLAGS that the file sets, kept for saving


def added_rows(added: Mapping[int, Added]) -> list[dict[str, Any]]:
    """The `added_tokens` of a tokenizer.json, in the order of their ids."""
    return [
        {"id": i, "content": token.text}
        | {flag: flag in token.flags for flag in FLAGS}
        | {"special": token.special}
        for i, token in sorted(added.items())
    ]


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
    cls: int | None = None
    sep: int | None = None
    mask: int | None = None
    add_bos: bool = False
    wrapping: Wrapping | None = None  # around texts; None: BOS before them, if add_bos
    nfc: bool = False  # Unicode normalization before everything else
    prefix_space: bool = False  # a space before every text that does not start with one
    ignore_merges: bool = False  # a word that is a token is that token, whatever the merges say
    template: str | None = None  # the Jinja text of the chat template
    places: dict[str, str] = field(default_factory=dict)  # where errors say that a part stands


def field_of(
    mapping: Mapping[str, Any], key: str, kind: type, path: str, *, at: str = "", none: bool = False
) -> Any:
    """`mapping[key]`, of exactly this type (True is no int); or None, if that is allowed."""
    if key not in mapping and not none:
        raise FormatError(path, at + key, "nothing", kind.__name__, "missing-field")
    value = mapping.get(key)
    if type(value) is not kind and not (none and value is None):
        raise FormatError(path, at + key, value, kind.__name__, "bad-type")
    return value


def one_of(value: object, allowed: Mapping[str, Any], path: str, where: str) -> Any:
    if type(value) is str and value in allowed:
        return allowed[value]
    raise FormatError(path, where, value, "one of " + ", ".join(allowed), "unknown-field")


def from_gguf(metadata: Mapping[str, Any], path: str) -> Vocabulary:
    """The vocabulary in the metadata of a GGUF file, `tokenizer.ggml.*`."""
    at = "tokenizer.ggml."

    def take(key: str, kind: type, none: bool = False) -> Any:
        return field_of(metadata, at + key, kind, path, none=none)

    one_of(take("model", str), {"gpt2": None}, path, at + "model")
    pre = take("pre", str, none=True)
    if pre is None or pre == "default":
        what = "names no pre-tokenizer: text is split as llama.cpp splits it by default"
        notice(path, f"{at}pre {what}; the model may have been trained on another split")
    pattern, nfc, whole = one_of(pre or "default", GGUF_NAMES, path, at + "pre")
    tokens, types, merges = (
        take("tokens", list),
        take("token_type", list, True),
        take("merges", list),
    )
    types = [NORMAL] * len(tokens) if types is None else types
    if len(types) != len(tokens):
        allowed = f"{len(tokens)}, one a token"
        raise FormatError(path, at + "token_type", len(types), allowed, "shape-mismatch")
    added = {}
    for i, (text, kind) in enumerate(zip(tokens, types, strict=True)):
        if type(kind) is not int or not NORMAL <= kind <= UNUSED:
            raise FormatError(path, f"{at}token_type[{i}]", kind, "1 to 5", "out-of-range")
        if type(text) is not str:
            raise FormatError(path, f"{at}tokens[{i}]", text, "text", "bad-type")
        if kind in (UNKNOWN, CONTROL, USER_DEFINED):
            added[i] = Added(text, special=kind != USER_DEFINED)
    usual = USUAL_ID if len(tokens) > USUAL_ID else None
    bos, eos = take("bos_token_id", int, none=True), take("eos_token_id", int, none=True)
    eos = usual if eos is None else eos
    if eos is None:
        raise FormatError(path, at + "eos_token_id", "nothing", "an id", "missing-field")
    add_bos = take("add_bos_token", bool, none=True)
    add_bos = pre in WITH_BOS if add_bos is None else add_bos
    bos = usual if bos is None and add_bos else bos
    wrapping = after(bos if add_bos else None)
    add_eos = take("add_eos_token", bool, none=True)
    return Vocabulary(
        tokens=tokens,
        merges=[merge_parts(merge, path, f"{at}merges[{i}]") for i, merge in enumerate(merges)],
        added=added,
        pattern=pattern,
        eos=eos,
        bos=bos,
        pad=take("padding_token_id", int, none=True),
        unk=take("unknown_token_id", int, none=True),
        add_bos=add_bos,
        wrapping=ended(wrapping, eos) if add_eos else None,
        nfc=nfc,
        ignore_merges=whole,
        template=field_of(metadata, "tokenizer.chat_template", str, path, none=True),
        places={"tokens": at + "tokens", "merges": at + "merges"}
        | {"eos": at + "eos_token_id", "bos": at + "bos_token_id"}
        | {"pad": at + "padding_token_id", "unk": at + "unknown_token_id"},
    )


def to_gguf(v: Vocabulary, template: str | None, size: int) -> dict[str, Any]:
    """The metadata that `from_gguf` and llama.cpp read, `size` tokens: as many as embedding rows.

    Rows without a token get one that no text has, [PAD0] and so on, as other converters name them.
    """
    at = "tokenizer.ggml."
    row = (v.pattern, v.nfc, v.ignore_merges)
    pre = next((name for name, known in GGUF_NAMES.items() if known == row), None)
    if pre is None or v.prefix_space:
        settings = f"nfc {v.nfc}, ignore_merges {v.ignore_merges}, prefix_space {v.prefix_space}"
        raise ConfigError(f"gguf: a {v.pattern} tokenizer with {settings} has no place there")
    types = [NORMAL] * len(v.tokens)
    for i, token in v.added.items():
        types[i] = CONTROL if token.special else USER_DEFINED
    spare = range(size - len(v.tokens))
    data = {
        at + "model": "gpt2",
        at + "pre": pre,
        at + "tokens": v.tokens + [f"[PAD{i}]" for i in spare],
        at + "token_type": types + [UNUSED for _ in spare],
        at + "merges": [" ".join(merge) for merge in v.merges],
        at + "eos_token_id": v.eos,
        at + "bos_token_id": v.bos,
        at + "padding_token_id": v.pad,
        at + "unknown_token_id": v.unk,
        at + "add_bos_token": v.add_bos,
        "tokenizer.chat_template": template,
    }
    return {key: value for key, value in data.items() if value is not None}


def merge_parts(merge: object, path: str, where: str) -> tuple[str, str]:
    """A merge, which is written "a b" or ["a", "b"]."""
    parts = merge.split(" ") if type(merge) is str else merge
    if type(parts) is list and len(parts) == 2:
        first, second = parts  # not in a loop: a vocabulary has half a million of them
        if type(first) is str and type(second) is str and first and second:
            return first, second
    raise FormatError(path, where, merge, "two parts", "bad-type")


def checked_ids(tokens: list[str], where: str, path: str) -> dict[str, int]:
    """token -> id, when every token is text of a sane size, and there once."""
    if not 1 <= len(tokens) <= MOST_TOKENS:
        allowed = f"1 to {MOST_TOKENS:,} tokens"
        raise FormatError(path, where, f"{len(tokens):,}", allowed, "limit")
    ids: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if type(text) is not str or not text:
            raise FormatError(path, f"{where}[{i}]", text, "a text that is not empty", "bad-type")
        try:
            size = len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError:
            raise FormatError(path, f"{where}[{i}]", text, "valid Unicode", "bad-utf8") from None
        if size > LONGEST_TOKEN:
            allowed = f"at most {LONGEST_TOKEN:,} bytes"
            raise FormatError(path, f"{where}[{i}]", f"{size:,}", allowed, "limit")
        if ids.setdefault(text, i) != i:
            found = f"{text!r} again, after {ids[text]}"
            raise FormatError(path, f"{where}[{i}]", found, "each token once", "dup-key")
    return ids
