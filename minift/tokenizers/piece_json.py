"""Sentencepiece vocabularies as tokenizer.json: the same pieces, with merges instead of scores.

A BPE model of sentencepiece joins the neighbours whose union has the highest score; tokenizer.json
lists the pairs in order. Each can be told from the other if all pairs that make a piece stand
together and no pair is left out, which is checked. piece_spaces.py reads how a space is put first.

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

from minift.errors import FormatError, notice
from minift.tokenizers import piece_settings, post_processor
from minift.tokenizers.piece_merges import MergeRules
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
from minift.tokenizers.piece_spaces import METASPACE, PREPENDED, REPLACE, first_space
from minift.tokenizers.tokenizer_json import by_id, refuse_unknown
from minift.tokenizers.vocabulary import (
    FLAGS,
    Added,
    added_rows,
    checked_ids,
    field_of,
    merge_parts,
    one_of,
)
from minift.tokenizers.wrapping import Wrapping, after

DECODERS = ("Replace", "ByteFallback", "Fuse", "Strip", "Sequence", "Metaspace")
# Fields of the model with the one value that has no effect.
USUAL: dict[str, object] = {"dropout": None}
USUAL |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
FLAGS_OF_MODEL = ("fuse_unk", "byte_fallback", "ignore_merges")


def is_pieces(data: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json holds pieces: BPE over characters, where a ▁ stands for a space."""
    model = data.get("model")
    if not isinstance(model, dict) or "merges" not in model:
        return False
    cuts = json.dumps(data.get("pre_tokenizer"))
    with_spaces = '"Metaspace"' in cuts or json.dumps(SPACE) in json.dumps(data.get("normalizer"))
    return model.get("byte_fallback") is True or (with_spaces and '"ByteLevel"' not in cuts)


def read(
    data: Mapping[str, Any],
    config: Mapping[str, Any] | None,
    path: str,
    more: Mapping[str, Any] | None = None,
) -> tuple[PieceModel, Settings, MergeRules]:
    """Pieces, settings and merges of a parsed tokenizer.json, with tokenizer_config.json and
    added_tokens.json (`more`)."""
    top = "version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder"
    refuse_unknown(data, (*top.split(), "model"), path, "")
    model = field_of(data, "model", dict, path)
    known = ("type", "vocab", "merges", "unk_token", *FLAGS_OF_MODEL, *USUAL)
    refuse_unknown(model, known, path, "model.")
    one_of(model.get("type", "BPE"), {"BPE": None}, path, "model.type")
    for key, usual in USUAL.items():
        value = model.get(key)
        if value is not None and value != usual:
            raise FormatError(path, "model." + key, value, json.dumps(usual), "unknown-field")
    flags = {
        key: bool(field_of(model, key, bool, path, at="model.", none=True))
        for key in FLAGS_OF_MODEL
    }
    decoder = field_of(data, "decoder", dict, path, none=True) or {}
    steps = decoder.get("decoders", [decoder] if decoder else [])
    for step in steps if type(steps) is list else [steps]:
        kind = step.get("type") if isinstance(step, dict) else step
        one_of(kind, dict.fromkeys(DECODERS), path, "decoder.type")

    ids = field_of(model, "vocab", dict, path, at="model.")
    pieces = by_id(ids, {}, path)
    checked_ids(pieces, "model.vocab", path)
    listed = _listed(data, path)
    types = bytearray(NORMAL for _ in pieces)
    unk = field_of(model, "unk_token", str, path, at="model.", none=True)
    if unk is not None and unk not in ids:
        where, allowed = "model.unk_token", "a token of the vocabulary"
        raise FormatError(path, where, unk, allowed, "missing-field")
    if flags["byte_fallback"]:
        for text in BYTES:
            if text in ids:
                types[ids[text]] = BYTE
    named = unk  # transformers 5 leaves it out where all bytes are there
    if unk is None:
        named = (config or {}).get("unk_token") or ROLES["unk"]
        named = named.get("content") if isinstance(named, dict) else named
    if type(named) is str and named in ids and types[ids[named]] == NORMAL:
        types[ids[named]] = UNKNOWN
    for name, i in _special(listed).items():
        if ids.get(name) == i and types[i] == NORMAL:
            types[i] = CONTROL

    merges = field_of(model, "merges", list, path, at="model.")
    found = PieceModel(
        pieces=pieces,
        scores=array("f", bytes(4 * len(pieces))),
        types=types,
        byte_fallback=flags["byte_fallback"],
        roles=ROLES | ({"unk": named} if type(named) is str else {}),
    )
    first = first_space(data, config or {}, path)
    settings = _settings(data, found, config, more or {}, path)
    settings = replace(settings, prefix=first.prefix, legacy=first.legacy, once=first.once)
    rules = MergeRules(
        merges=[merge_parts(merge, path, f"model.merges[{n}]") for n, merge in enumerate(merges)],
        unk=ids[unk] if unk is not None else None,
        fuse_unk=flags["fuse_unk"],
        byte_fallback=flags["byte_fallback"],
        ignore_merges=flags["ignore_merges"],
        steps=first.steps,
        split=first.split,
        once=first.once,
        document={"normalizer": first.normalizer, "pre_tokenizer": first.pre_tokenizer}
        | {"decoder": data.get("decoder")},
    )
    return found, settings, rules


def _settings(
    data: Mapping[str, Any],
    model: PieceModel,
    config: Mapping[str, Any] | None,
    more: Mapping[str, Any],
    path: str,
) -> Settings:
    """What a tokenizer.json says beside its pieces, and the two smaller files (piece_settings).

    Which special tokens stand around a text its post-processor says, whatever add_bos_token says:
    so transformers has it.
    """
    both = dict(config or {})
    decoder = field_of(both, "added_tokens_decoder", dict, path, none=True) or {}
    listed = {key: {name: row[name] for name in ("content", "special", *FLAGS) if name in row}
              for key, row in _listed(data, path).items()}  # fmt: skip
    both["added_tokens_decoder"] = decoder | listed
    asked = field_of(both, "add_bos_token", bool, path, none=True)
    wrapping = post_processor.wrapping_of(data.get("post_processor"), _special(listed), path)
    wrapping = wrapping or Wrapping()
    start = wrapping.single[0][0]
    both["add_bos_token"] = False
    settings = piece_settings.from_config(model, both, more, path)
    starts = settings.bos is not None and start == settings.bos
    if asked is not None and asked != starts:
        does = "puts the BOS token before texts" if starts else "puts no BOS token before texts"
        said = f"add_bos_token {json.dumps(asked)} in tokenizer_config.json"
        notice(path, f"{does}; {said} is ignored")
    return replace(settings, add_bos=starts, wrapping=wrapping)


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


def scores_of(
    pieces: list[str], types: bytearray, merges: list[tuple[str, str]], path: str
) -> array[float]:
    """A score for every piece: minus the place at which the merges begin to make it.

    Of ordinary pieces, which are all that sentencepiece merges.
    """

    def refuse(where: str, found: str) -> NoReturn:
        allowed = "all pairs of a piece together; if there is a tokenizer.model, use that"
        raise FormatError(path, where, found, allowed, "unsafe")

    scores, last, before = array("f", bytes(4 * len(pieces))), "", ""
    ids = {text: i for i, text in enumerate(pieces)}
    made: dict[str, int] = {}  # piece -> how many pairs make it
    for n, (a, b) in enumerate(merges):
        whole = a + b
        if any(types[ids[text]] != NORMAL for text in (a, b, whole)):
            continue
        run = whole == whole[0] * len(whole)
        if whole != last and whole in made and not run:
            refuse(f"model.merges[{n}]", f"{a} {b}, apart from others that make {whole}")
        made[whole], last = made.get(whole, 0) + 1, whole
        if made[whole] == 1:
            # Runs of a character (spaces, mostly) may have had one score, and stand mixed up.
            start = scores[ids[before]] if run and before else -1.0 - n
            scores[ids[whole]] = start
        before = whole if run else ""
    seen = set(merges)
    for i, pairs in _pairs(pieces, types):
        if made.get(pieces[i], 0) != len(pairs):
            a, b = next(pair for pair in pairs if pair not in seen)
            refuse("model.merges", f"no {a} {b}, which the vocabulary has")
    return scores


def can_write(model: PieceModel, settings: Settings) -> bool:
    """Whether a tokenizer.json has the ids of a sentencepiece model for every text."""
    plain = not (model.unigram or model.table or model.trim_spaces) and model.byte_fallback
    known = settings.once or settings.legacy or not model.dummy_prefix
    # Of a user-defined piece the library finds the ▁ form too, and puts no space behind it.
    own = {i for i, kind in enumerate(model.types) if kind == USER_DEFINED} - settings.found.keys()
    found = not own or not model.dummy_prefix
    return plain and known and found and not any(
        SPACE in text and kind == USER_DEFINED
        for text, kind in zip(model.pieces, model.types, strict=True)
    )  # fmt: skip


def rules_of(model: PieceModel, settings: Settings) -> MergeRules:
    """The merges of a model that `can_write` lets through."""
    scores = model.scores
    rows = sorted(_pairs(model.pieces, model.types), key=lambda row: (-scores[row[0]], row[0]))
    normalizer: dict[str, Any] | None = PREPENDED if model.dummy_prefix else REPLACE
    cut = None
    if settings.once and model.dummy_prefix:
        normalizer = None
        cut = METASPACE | {"prepend_scheme": "always" if settings.legacy else "first"}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if model.dummy_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return MergeRules(
        merges=[pair for _, pairs in rows for pair in pairs],
        unk=model.types.index(UNKNOWN),
        fuse_unk=True,
        byte_fallback=True,
        document={"normalizer": normalizer, "pre_tokenizer": cut}
        | {"decoder": {"type": "Sequence", "decoders": steps}},
    )


def to_json(
    model: PieceModel, settings: Settings, special: Mapping[str, int], rules: MergeRules
) -> bytes:
    """tokenizer.json of pieces and their merges."""
    own = {i: Added(text, False) for i, text in enumerate(model.pieces)
           if model.types[i] == USER_DEFINED}  # fmt: skip
    added = {i: Added(text) for text, i in special.items()}
    added = own | added | dict(settings.found) | dict(settings.added)
    wrapping = settings.wrapping or after(settings.bos if settings.add_bos else None)
    names = {i: text for text, i in special.items()}
    post = None if wrapping == Wrapping() else post_processor.to_json(wrapping, names)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_rows(added),
        "normalizer": rules.document["normalizer"],
        "pre_tokenizer": rules.document["pre_tokenizer"],
        "post_processor": post,
        "decoder": rules.document["decoder"],
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if rules.unk is None else model.pieces[rules.unk],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": rules.fuse_unk,
            "byte_fallback": rules.byte_fallback,
            "ignore_merges": rules.ignore_merges,
            "vocab": {text: i for i, text in enumerate(model.pieces)},
            "merges": rules.merges,
        },
    }
    return (json.dumps(tokenizer, ensure_ascii=False) + "\n").encode()
