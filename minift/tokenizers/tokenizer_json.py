"""tokenizer.json and tokenizer_config.json of a Hugging Face folder, to a Vocabulary and back."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from minift.errors import FormatError
from minift.tokenizers import post_processor, split_default
from minift.tokenizers.split import GPT2, LLAMA3, QWEN2
from minift.tokenizers.vocabulary import (
    FLAGS,
    ROLES,
    Added,
    Vocabulary,
    added_rows,
    field_of,
    merge_parts,
    one_of,
)
from minift.tokenizers.wrapping import Wrapping, after

# Fields of the model with the one value that minift knows; those of no effect where bytes are text.
USUAL: dict[str, object] = {"dropout": None, "byte_fallback": False}
USUAL |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
FREE = ("unk_token", "fuse_unk")
TOP = (
    *("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer"),
    *("post_processor", "decoder", "model"),
)


def from_json(data: Mapping[str, Any], config: Mapping[str, Any] | None, path: str) -> Vocabulary:
    """The vocabulary of a parsed tokenizer.json; the roles of its tokens are in `config`.

    Without `config` (tokenizer_config.json) the file must have exactly one special token, which
    then is the end of text. `truncation` and `padding` are ignored: they belong to batches.
    """
    check_top(data, path)
    model = field_of(data, "model", dict, path)
    at = "model."
    fields = ("type", "vocab", "merges", "ignore_merges", *FREE, *USUAL)
    one_of(model.get("type", "BPE"), {"BPE": None}, path, at + "type")
    refuse_unknown(model, fields, path, at)
    for key, usual in USUAL.items():
        value = model.get(key)
        if value is not None and value != usual:
            raise FormatError(path, at + key, value, json.dumps(usual), "unknown-field")
    ids = field_of(model, "vocab", dict, path, at=at)
    added = added_tokens(data.get("added_tokens", []), ids, path)
    decoder = field_of(data, "decoder", dict, path)
    one_of(decoder.get("type"), {"ByteLevel": None}, path, "decoder.type")
    normalizer = field_of(data, "normalizer", dict, path, none=True)
    if normalizer is not None:
        one_of(normalizer.get("type"), {"NFC": None}, path, "normalizer.type")
    merges = field_of(model, "merges", list, path, at=at)

    settings = dict(config or {})
    settings_path = os.path.join(os.path.dirname(path), "tokenizer_config.json")
    special = {token.text: i for i, token in added.items() if token.special}
    if config is None and len(special) == 1:
        settings["eos_token"] = next(iter(special))
    roles = {
        role: role_of(settings.get(role + "_token"), role, ids, added, settings_path)
        for role in ROLES
    }
    eos = roles.pop("eos")
    if eos is None:
        raise FormatError(settings_path, "eos_token", "nothing", "a token", "missing-field")
    wrapping = post_processor.wrapping_of(data.get("post_processor"), special, path)
    starts = _starts(wrapping)
    if starts is not None and roles["bos"] is None and settings.get("bos_token") is None:
        roles["bos"] = starts  # nobody names it, but every text begins with it
    if starts is not None and starts != roles["bos"]:
        allowed = f"only the BOS token, {roles['bos']}"
        raise FormatError(path, "post_processor", starts, allowed, "unknown-field")
    add_bos = field_of(settings, "add_bos_token", bool, settings_path, none=True)
    if wrapping == Wrapping() or (add_bos and wrapping and len(wrapping.single) == 1):
        wrapping = None  # nothing, or what add_bos says
    pattern, prefix_space = _pattern(data.get("pre_tokenizer"), path)
    return Vocabulary(
        tokens=by_id(ids, added, path),
        merges=[merge_parts(merge, path, f"model.merges[{i}]") for i, merge in enumerate(merges)],
        added=added,
        pattern=pattern,
        eos=eos,
        **roles,
        add_bos=bool(add_bos) or starts is not None,
        wrapping=wrapping,
        nfc=normalizer is not None,
        prefix_space=prefix_space,
        ignore_merges=bool(field_of(model, "ignore_merges", bool, path, at=at, none=True)),
        template=template_of(settings.get("chat_template"), settings_path),
        places={"tokens": "model.vocab", "merges": "model.merges"}
        | {role: f"{role}_token" for role in ("eos", *roles)},
    )


def check_top(data: Mapping[str, Any], path: str) -> None:
    """The fields of a tokenizer.json, whatever its model, and the one version that there is."""
    refuse_unknown(data, TOP, path, "")
    if data.get("version") not in ("1.0", None):
        raise FormatError(path, "version", data["version"], '"1.0"', "bad-version")


def of_merges(ids: Mapping[str, Any], merges: str, path: str) -> dict[str, Any]:
    """A vocab.json and a merges.txt as the part of a tokenizer.json that they are."""
    rows: list[list[str]] = []
    for n, line in enumerate(merges.split("\n")):
        line = line.removesuffix("\r")
        if not line or line.startswith("#version"):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not (parts[0] and parts[1]):
            raise FormatError(path, f"line {n + 1:,}", line, "two tokens with a space", "bad-type")
        rows.append(parts)
    return {"version": "1.0", "model": {"type": "BPE", "vocab": dict(ids), "merges": rows}}


def _starts(wrapping: Wrapping | None) -> int | None:
    """The id that stands before every text, with none after it: that of a decoder."""
    match wrapping and wrapping.single:
        case ((int(i), _), ("A", _)):
            return i
    return None


def refuse_unknown(mapping: Mapping[str, Any], known: tuple[str, ...], path: str, at: str) -> None:
    for key in mapping:
        if key not in known:
            raise FormatError(path, at + key, "an unknown field", ", ".join(known), "unknown-field")


def added_tokens(rows: object, ids: Mapping[str, Any], path: str) -> dict[int, Added]:
    if type(rows) is not list:
        raise FormatError(path, "added_tokens", rows, "a list", "bad-type")
    added: dict[int, Added] = {}
    taken: dict[str, int] = {}
    for n, row in enumerate(rows):
        at = f"added_tokens[{n}]."
        if type(row) is not dict:
            raise FormatError(path, at[:-1], row, "an object", "bad-type")
        refuse_unknown(row, ("id", "content", "special", *FLAGS), path, at)
        i, text = field_of(row, "id", int, path, at=at), field_of(row, "content", str, path, at=at)
        if not text:
            raise FormatError(path, at + "content", text, "at least one character", "out-of-range")
        if i in added or text in taken:
            raise FormatError(path, at[:-1], f"{i} {text!r} again", "each once", "dup-key")
        if ids.get(text, i) != i:
            allowed = f"{ids[text]}, its id in model.vocab"
            raise FormatError(path, at + "id", i, allowed, "dup-key")
        special = field_of(row, "special", bool, path, at=at)
        flags = tuple(f for f in FLAGS if field_of(row, f, bool, path, at=at, none=True))
        added[i] = Added(text, special, flags)
        taken[text] = i
    return added


def by_id(ids: Mapping[str, Any], added: Mapping[int, Added], path: str) -> list[str]:
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


def role_of(
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

    def each(published: tuple[str, ...]) -> dict[str, Any]:
        steps = [split(text) for text in published]
        return {"type": "Sequence", "pretokenizers": [*steps, byte_level(False)]}

    return {
        "gpt2": byte_level(True),
        "smollm": sequence({"type": "Digits", "individual_digits": True}, True),
        "llama3": sequence(split(LLAMA3), False),
        "qwen2": sequence(split(QWEN2), False),
        "default": each(split_default.PUBLISHED),
    }


def _other_forms() -> list[tuple[str, dict[str, Any]]]:
    """The same patterns, as some files write them."""
    known = _pre_tokenizers()
    gpt2 = json.loads(json.dumps(known["llama3"]).replace(json.dumps(LLAMA3), json.dumps(GPT2)))
    return [*known.items(), ("gpt2", gpt2)]


def _pattern(value: Any, path: str) -> tuple[str, bool]:
    """The name of the pattern that `pre_tokenizer` asks for; it is compared, never compiled.

    And whether a space goes before texts, which is known of GPT-2's pattern only.
    """

    def written(step: Any) -> str:  # compared as text, since 1 == True
        return json.dumps(shape(step), sort_keys=True)

    asked = written(value)
    for name, known in _other_forms():
        if asked == written(known):
            return name, False
    if asked == written(_pre_tokenizers()["gpt2"] | {"add_prefix_space": True}):
        return "gpt2", True
    known_names = "the known forms of " + ", ".join(_pre_tokenizers())
    raise FormatError(path, "pre_tokenizer", value, known_names, "unsafe")


def shape(step: Any) -> Any:
    """A step of tokenizer.json without what has no effect on ids, the defaults filled in."""
    if type(step) is not dict:
        return step
    kept = {key: value for key, value in step.items() if key != "trim_offsets"}
    if kept.get("type") == "ByteLevel":
        kept.setdefault("use_regex", True)
    if kept.get("type") == "BertNormalizer" and kept.get("strip_accents") is None:
        kept["strip_accents"] = kept.get("lowercase")
    # The patterns match every character: to drop what they do not match drops nothing.
    if kept.get("behavior") == "Removed" and kept.get("invert") is True:
        kept |= {"behavior": "Isolated", "invert": False}
    if type(kept.get("pretokenizers")) is list:
        kept["pretokenizers"] = [shape(inner) for inner in kept["pretokenizers"]]
    return kept


def byte_level_parts(pattern: str, nfc: bool, prefix_space: bool) -> dict[str, Any]:
    """How tokenizer.json writes what goes before the merges, and what turns tokens into text."""
    known = _pre_tokenizers()
    before = known[pattern]
    if prefix_space:  # which is known of the last step, and of no pattern but GPT-2's
        last = before["pretokenizers"][-1] if "pretokenizers" in before else before
        last["add_prefix_space"] = True
    return {
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": before,
        "decoder": known["gpt2"],
    }


def template_of(value: object, path: str) -> str | None:
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

    parts = byte_level_parts(v.pattern, v.nfc, v.prefix_space)
    post: dict[str, Any] = parts["decoder"]
    wrapping = v.wrapping or after(v.bos if v.add_bos else None)
    if wrapping != Wrapping():
        post = post_processor.to_json(wrapping, v.tokens)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_rows(v.added),
        "normalizer": parts["normalizer"],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": post,
        "decoder": parts["decoder"],
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
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": v.add_bos,
        "bos_token": name(v.bos),
        "eos_token": name(v.eos),
        "pad_token": name(v.pad),
        "unk_token": name(v.unk),
        "clean_up_tokenization_spaces": False,
    }
    for role in ("cls", "sep", "mask"):
        if (i := getattr(v, role)) is not None:
            config[f"{role}_token"] = name(i)
    if template is not None:
        config["chat_template"] = template
    return {
        "tokenizer.json": (json.dumps(tokenizer, ensure_ascii=False) + "\n").encode(),
        "tokenizer_config.json": (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode(),
    }
