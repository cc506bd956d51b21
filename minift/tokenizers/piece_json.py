"""Sentencepiece vocabularies as tokenizer.json: the same pieces, with merges instead of scores.

A BPE model of sentencepiece joins the neighbours whose union has the highest score; tokenizer.json
lists the pairs in order. Each can be told from the other if all pairs that make a piece stand
together and no pair is left out, which is checked. How a space is put first is told by `normalizer`
or `pre_tokenizer`; the forms below are known, others are refused.

Written only where transformers then finds the same ids in every text: not for unigram models or
normalization tables, and not where a piece is user-defined (text after it would get a first space).
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NoReturn

from minift.errors import FormatError
from minift.tokenizers import piece_model, piece_settings, post_processor
from minift.tokenizers.piece_model import (
    BYTE,
    BYTES,
    CONTROL,
    NORMAL,
    ROLES,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    PieceModel,
)
from minift.tokenizers.piece_settings import Settings
from minift.tokenizers.tokenizer_json import by_id, refuse_unknown
from minift.tokenizers.vocabulary import FLAGS, Added, field_of, merge_parts, one_of
from minift.tokenizers.wrapping import Wrapping, after

PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPENDED = {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}
METASPACE: dict[str, object] = {"type": "Metaspace", "replacement": SPACE, "split": False}
SPLIT: dict[str, object] = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
}
SPLIT |= {"invert": False}  # of no effect, as no space is left by then
DECODERS = ("Replace", "ByteFallback", "Fuse", "Strip", "Sequence")
# Fields of the model with the one value that has no effect.
USUAL: dict[str, object] = {"dropout": None, "ignore_merges": False}
USUAL |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}


def is_pieces(data: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json holds a sentencepiece vocabulary: BPE with bytes as a way out."""
    model = data.get("model")
    return isinstance(model, dict) and model.get("byte_fallback") is True


def read(
    data: Mapping[str, Any], config: Mapping[str, Any] | None, path: str
) -> tuple[PieceModel, Settings]:
    """Pieces and settings of a parsed tokenizer.json and tokenizer_config.json."""
    top = "version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder"
    refuse_unknown(data, (*top.split(), "model"), path, "")
    model = field_of(data, "model", dict, path)
    known = ("type", "vocab", "merges", "unk_token", "fuse_unk", "byte_fallback", *USUAL)
    refuse_unknown(model, known, path, "model.")
    one_of(model.get("type", "BPE"), {"BPE": None}, path, "model.type")
    for key, usual in USUAL.items():
        value = model.get(key)
        if value is not None and value != usual:
            raise FormatError(path, "model." + key, value, json.dumps(usual), "unknown-field")
    if model.get("byte_fallback") is not True:
        where, found = "model.byte_fallback", model.get("byte_fallback")
        raise FormatError(path, where, found, "true, in a sentencepiece vocabulary", "bad-type")
    decoder = field_of(data, "decoder", dict, path)
    steps = decoder.get("decoders", [decoder])
    for step in steps if type(steps) is list else [steps]:
        kind = step.get("type") if isinstance(step, dict) else step
        one_of(kind, dict.fromkeys(DECODERS), path, "decoder.type")

    ids = field_of(model, "vocab", dict, path, at="model.")
    pieces = by_id(ids, {}, path)
    listed = _listed(data, path)
    types = bytearray(NORMAL for _ in pieces)
    for text in BYTES:
        if text not in ids:
            raise FormatError(path, "model.vocab", f"no {text}", "all 256 bytes", "missing-field")
        types[ids[text]] = BYTE
    unk = model.get("unk_token")
    if unk is None:  # as transformers 5 leaves it; with all bytes there it is never needed
        unk = (config or {}).get("unk_token") or ROLES["unk"]
        unk = unk.get("content") if isinstance(unk, dict) else unk
    if type(unk) is not str or unk not in ids or types[ids[unk]] == BYTE:
        allowed = "a token of the vocabulary"
        raise FormatError(path, "model.unk_token", unk, allowed, "missing-field")
    types[ids[unk]] = UNKNOWN
    for name, i in _special(listed).items():
        if ids.get(name) == i and types[i] == NORMAL:
            types[i] = CONTROL

    merges = field_of(model, "merges", list, path, at="model.")
    found = PieceModel(
        pieces=pieces,
        scores=_scores(pieces, types, ids, merges, path),
        types=types,
        byte_fallback=True,
        roles=ROLES | {"unk": unk},
    )
    piece_model.check(found, path, "model.vocab")
    return found, beside(data, found, config, {}, path)


def beside(
    data: Mapping[str, Any],
    model: PieceModel,
    config: Mapping[str, Any] | None,
    more: Mapping[str, Any],
    path: str,
) -> Settings:
    """What a tokenizer.json says beside its pieces, and the two smaller files (piece_settings)."""
    both = dict(config or {})
    decoder = field_of(both, "added_tokens_decoder", dict, path, none=True) or {}
    listed = {key: {name: row[name] for name in ("content", "special", *FLAGS) if name in row}
              for key, row in _listed(data, path).items()}  # fmt: skip
    both["added_tokens_decoder"] = decoder | listed
    wrapping = post_processor.wrapping_of(data.get("post_processor"), _special(listed), path)
    match wrapping and wrapping.single:
        case None | (("A", _),):
            starts = None
        case ((int(starts), _), ("A", _)):
            if both.get("add_bos_token") is None:
                both["add_bos_token"] = True
        case _:
            allowed = "the text, after BOS or alone"
            raise FormatError(path, "post_processor", "another form", allowed, "unknown-field")
    settings = _first_space(data, piece_settings.from_config(model, both, more, path), path)
    if starts is not None and starts != settings.bos:
        allowed = f"only the BOS token, {settings.bos}"
        raise FormatError(path, "post_processor", starts, allowed, "unknown-field")
    if wrapping is not None and settings.add_bos == (starts is not None):
        settings = replace(settings, wrapping=wrapping)
    return settings


def _listed(data: Mapping[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """The added tokens by id, as tokenizer_config.json has them."""
    listed: dict[str, dict[str, Any]] = {}
    for n, row in enumerate(field_of(data, "added_tokens", list, path, none=True) or []):
        at = f"added_tokens[{n}]"
        if type(row) is not dict:
            raise FormatError(path, at, row, "an object", "bad-type")
        i = field_of(row, "id", int, path, at=at + ".")
        if listed.setdefault(str(i), row) is not row:
            raise FormatError(path, at + ".id", f"{i} again", "each once", "dup-key")
    return listed


def _special(listed: Mapping[str, dict[str, Any]]) -> dict[str, int]:
    """Name -> id of the special ones."""
    names = {
        int(key): row.get("content") for key, row in listed.items() if row.get("special") is True
    }
    return {name: i for i, name in names.items() if type(name) is str}


def _first_space(data: Mapping[str, Any], settings: Settings, path: str) -> Settings:
    """The settings, with what a tokenizer.json says of the space before a text and its parts."""
    normalizer, cut = data.get("normalizer"), data.get("pre_tokenizer")
    if cut in (None, SPLIT):
        if normalizer == REPLACE:
            return replace(settings, prefix=False, legacy=True)
        if normalizer == PREPENDED:
            return replace(settings, prefix=True, legacy=True)
    elif normalizer is None and type(cut) is dict:
        scheme = cut.get("prepend_scheme")
        if scheme in ("always", "first", "never") and cut == METASPACE | {"prepend_scheme": scheme}:
            legacy, prefix = scheme != "first", scheme != "never"
            return replace(settings, prefix=prefix, legacy=legacy, once=True)
    where = "normalizer" if cut is None else "pre_tokenizer"
    allowed = "a known form of sentencepiece's"
    raise FormatError(path, where, data.get(where), allowed, "unsafe")


def _pairs(pieces: list[str], types: bytearray) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(id, the pairs that make it) of every piece that a BPE can make of two others."""
    ordinary = {text for text, kind in zip(pieces, types, strict=True) if text and kind == NORMAL}
    lengths = sorted(set(map(len, ordinary)))  # only there may a piece be cut
    for i, text in enumerate(pieces):
        if types[i] != NORMAL:
            continue
        pairs = []
        for cut in lengths[: bisect_left(lengths, len(text))]:
            if text[:cut] in ordinary and text[cut:] in ordinary:
                pairs.append((text[:cut], text[cut:]))
        if pairs:
            yield i, pairs


def _scores(
    pieces: list[str], types: bytearray, ids: Mapping[str, int], merges: list[Any], path: str
) -> array[float]:
    """A score for every piece: minus the place at which the merges begin to make it."""

    def refuse(where: str, found: str) -> NoReturn:
        allowed = "all pairs of a piece together; if there is a tokenizer.model, use that"
        raise FormatError(path, where, found, allowed, "unsafe")

    scores, seen, last = array("f", bytes(4 * len(pieces))), set(), ""
    made: dict[str, int] = {}  # piece -> how many pairs make it
    for n, merge in enumerate(merges):
        a, b = merge_parts(merge, path, f"model.merges[{n}]")
        whole = a + b
        for text in (a, b, whole):
            if text not in ids or types[ids[text]] != NORMAL:
                allowed = "ordinary tokens of the vocabulary"
                raise FormatError(path, f"model.merges[{n}]", text, allowed, "out-of-range")
        if (a, b) in seen:
            raise FormatError(path, f"model.merges[{n}]", f"{a} {b} again", "once", "dup-key")
        seen.add((a, b))
        if whole != last and whole in made:
            refuse(f"model.merges[{n}]", f"{a} {b}, apart from others that make {whole}")
        made[whole], last = made.get(whole, 0) + 1, whole
        scores[ids[whole]] = -1.0 - n if made[whole] == 1 else scores[ids[whole]]
    for i, pairs in _pairs(pieces, types):
        if made.get(pieces[i], 0) != len(pairs):
            a, b = next(pair for pair in pairs if pair not in seen)
            refuse("model.merges", f"no {a} {b}, which the vocabulary has")
    return scores


def can_write(model: PieceModel, settings: Settings) -> bool:
    """Whether a tokenizer.json has the ids of this tokenizer for every text."""
    plain = not (model.unigram or model.table or model.trim_spaces) and model.byte_fallback
    known = settings.once or settings.legacy or not model.dummy_prefix
    return plain and known and USER_DEFINED not in model.types


def to_json(model: PieceModel, settings: Settings, special: Mapping[str, int]) -> bytes:
    """tokenizer.json of a model that `can_write` lets through."""
    ids = {text: i for i, text in enumerate(model.pieces)}
    scores = model.scores
    rows = sorted(_pairs(model.pieces, model.types), key=lambda row: (-scores[row[0]], row[0]))
    added = {i: Added(text) for text, i in special.items()} | dict(settings.added)
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizer: dict[str, Any] | None = PREPENDED if model.dummy_prefix else REPLACE
    cut = None
    if settings.once and model.dummy_prefix:
        normalizer = None
        cut = METASPACE | {"prepend_scheme": "always" if settings.legacy else "first"}
    if model.dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    wrapping = settings.wrapping or after(settings.bos if settings.add_bos else None)
    names = {i: text for text, i in special.items()}
    post = None if wrapping == Wrapping() else post_processor.to_json(wrapping, names)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token.text}
            | {flag: flag in token.flags for flag in FLAGS}
            | {"special": token.special}
            for i, token in sorted(added.items())
        ],
        "normalizer": normalizer,
        "pre_tokenizer": cut,
        "post_processor": post,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": model.pieces[model.types.index(UNKNOWN)],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [pair for _, pairs in rows for pair in pairs],
        },
    }
    return (json.dumps(tokenizer, ensure_ascii=False) + "\n").encode()
