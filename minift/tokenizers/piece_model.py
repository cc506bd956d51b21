"""A sentencepiece model: pieces, scores, types and a few switches, read from its protobuf.

    ModelProto {1: Piece {1: text, 2: score, 3: type}, ..., 2: TrainerSpec, 3: NormalizerSpec}

The C++ library trusts its input: a table of its normalizer can send it outside of its memory. So
the bytes are walked here, everything is checked, and the library is given a message written anew
from what was accepted (`to_bytes`), never the file. Field numbers are those of
sentencepiece_model.proto; the wire format is that of protocol buffers, version 2.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from minift.errors import FormatError
from minift.tokenizers.vocabulary import LONGEST_TOKEN, MOST_TOKENS

MOST_BYTES = 64 << 20
LARGEST_TABLE = 16 << 20
LONGEST_KEY = 32  # bytes of a rule of a normalization table; published tables have up to 12
LONGEST_RULE = 64  # bytes of what it puts there; the published tables (NFKC) have up to 33
DEEPEST = 64  # user-defined pieces that begin with one another; more overflow a buffer of the C++
SPACE = "\u2581"  # how a space is written in pieces

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}

VARINT, FIXED64, TEXT, FIXED32 = 0, 1, 2, 5
WIRES = {VARINT: "a varint", FIXED64: "8 bytes", TEXT: "a length", FIXED32: "4 bytes"}

# number -> name and wire type of every field that the format has.
PIECE = {1: ("piece", TEXT), 2: ("score", FIXED32), 3: ("type", VARINT)}
MODEL = {1: ("pieces", TEXT), 2: ("trainer_spec", TEXT), 3: ("normalizer_spec", TEXT)}
MODEL |= {4: ("self_test_data", TEXT), 5: ("denormalizer_spec", TEXT)}
NORMALIZER = {1: ("name", TEXT), 2: ("precompiled_charsmap", TEXT), 6: ("rules", TEXT)}
NORMALIZER |= {3: ("add_dummy_prefix", VARINT), 4: ("remove_extra_whitespaces", VARINT)}
NORMALIZER |= {5: ("escape_whitespaces", VARINT)}
TRAINER = {3: ("model_type", VARINT), 24: ("treat_whitespace_as_suffix", VARINT)}
TRAINER |= {35: ("byte_fallback", VARINT), 45: ("unk_piece", TEXT), 46: ("bos_piece", TEXT)}
TRAINER |= {47: ("eos_piece", TEXT), 48: ("pad_piece", TEXT), 44: ("unk_surface", TEXT)}
# What the training was told, of no effect afterwards.
TOLD = {TEXT: (1, 2, 5, 7, 30, 31, 36, 53, 54), FIXED32: (10, 15, 51)}
TOLD[VARINT] = (4, 6, *range(11, 15), *range(16, 24), 25, 26, *range(32, 35), *range(40, 44))
TOLD[VARINT] += (49, 50, 52, 55)
TRAINER |= {n: (f"field {n}", wire) for wire, numbers in TOLD.items() for n in numbers}
REPEATED = {"pieces", "field 1", "field 5", "field 30", "field 31"}
ROLES = {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}


@dataclass(frozen=True)
class PieceModel:
    """What was read and accepted."""

    pieces: list[str]
    scores: array[float]
    types: bytearray
    unigram: bool = False  # else BPE, where a score is minus the rank of a merge
    byte_fallback: bool = False  # a character that is no piece becomes its bytes, not <unk>
    dummy_prefix: bool = True  # a space is put before every text
    trim_spaces: bool = False  # runs of spaces become one, those at the ends none
    table: bytes = b""  # the compiled normalization rules
    roles: Mapping[str, str] = field(default_factory=lambda: dict(ROLES))  # names of those pieces


def read(raw: bytes, path: str) -> PieceModel:
    """The model in the bytes of a `.model` file; FormatError for everything else."""
    if len(raw) > MOST_BYTES:
        raise FormatError(path, "file", f"{len(raw):,} bytes", f"at most {MOST_BYTES:,}", "limit")
    pieces: list[str] = []
    scores, types = array("f"), bytearray()
    specs: dict[str, dict[str, Any]] = {}
    for name, value in _fields(raw, MODEL, path, ""):
        if name == "pieces":
            text, score, kind = _piece(value, path, f"pieces[{len(pieces)}]")
            if len(pieces) >= MOST_TOKENS:
                raise FormatError(path, "pieces", "more", f"at most {MOST_TOKENS:,}", "limit")
            pieces.append(text)
            scores.append(score)
            types.append(kind)
        elif name != "self_test_data":  # a test that the training wrote for its own machine
            known = TRAINER if name == "trainer_spec" else NORMALIZER
            specs[name] = _spec(value, known, path, name + ".")
    for name in ("trainer_spec", "normalizer_spec"):  # they stand last: a file cut short lacks them
        if name not in specs:
            raise FormatError(path, name, "nothing", "that field", "missing-field")
    trainer, normalizer = specs["trainer_spec"], specs["normalizer_spec"]

    def flag(spec: dict[str, Any], at: str, name: str, default: bool) -> bool:
        value = spec.get(name, int(default))
        if value > 1:
            raise FormatError(path, f"{at}.{name}", value, "0 or 1", "out-of-range")
        return bool(value)

    kind = trainer.get("model_type", UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        allowed = "1 (unigram) or 2 (BPE)"
        raise FormatError(path, "trainer_spec.model_type", kind, allowed, "out-of-range")
    if flag(trainer, "trainer_spec", "treat_whitespace_as_suffix", False):
        where = "trainer_spec.treat_whitespace_as_suffix"
        raise FormatError(path, where, "true", "false", "unknown-field")
    if not flag(normalizer, "normalizer_spec", "escape_whitespaces", True):
        where = "normalizer_spec.escape_whitespaces"
        raise FormatError(path, where, "false", "true", "unknown-field")
    if specs.get("denormalizer_spec", {}).get("precompiled_charsmap"):
        where = "denormalizer_spec.precompiled_charsmap"
        raise FormatError(path, where, "a table", "none", "unknown-field")
    model = PieceModel(
        pieces=pieces,
        scores=scores,
        types=types,
        unigram=kind == UNIGRAM,
        byte_fallback=flag(trainer, "trainer_spec", "byte_fallback", False),
        dummy_prefix=flag(normalizer, "normalizer_spec", "add_dummy_prefix", True),
        trim_spaces=flag(normalizer, "normalizer_spec", "remove_extra_whitespaces", True),
        table=bytes(normalizer.get("precompiled_charsmap", b"")),
        roles={
            role: _text(trainer[f"{role}_piece"], path, f"trainer_spec.{role}_piece")
            if f"{role}_piece" in trainer
            else usual
            for role, usual in ROLES.items()
        },
    )
    check(model, path)
    return model


def _fields(
    data: bytes, known: Mapping[int, tuple[str, int]], path: str, at: str
) -> Iterator[tuple[str, Any]]:
    """(name, value) of the fields of a message: an int, or the bytes."""
    i, end, seen = 0, len(data), set()

    def cut(where: str) -> NoReturn:
        raise FormatError(path, where, f"the end at byte {end:,}", "the whole field", "truncated")

    def varint(i: int, where: str) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if i >= end:
                cut(where)
            byte = data[i]
            i += 1
            value |= (byte & 127) << shift
            if byte < 128:
                if value >> 64:
                    break
                return value, i
        raise FormatError(path, where, "a longer number", "at most 64 bits", "overflow")

    while i < end:
        tag, i = varint(i, f"{at}byte {i:,}")
        number, wire = tag >> 3, tag & 7
        if number not in known:
            what = f"field {number}" if number < 1 << 29 else "a huge field number"
            raise FormatError(
                path, at + "fields", what, "the fields of the format", "unknown-field"
            )
        name, wanted = known[number]
        if wire != wanted:
            found = WIRES.get(wire, f"wire type {wire}")
            raise FormatError(path, at + name, found, WIRES[wanted], "bad-type")
        if name not in REPEATED:
            if name in seen:
                raise FormatError(path, at + name, "it again", "each field once", "dup-key")
            seen.add(name)
        value: int | bytes
        if wire == VARINT:
            value, i = varint(i, at + name)
        else:
            size = 4
            if wire == TEXT:
                size, i = varint(i, at + name)
            if size > end - i:
                cut(at + name)
            value, i = data[i : i + size], i + size
        yield name, value


def _spec(data: bytes, known: Mapping[int, tuple[str, int]], path: str, at: str) -> dict[str, Any]:
    return dict(_fields(data, known, path, at))


def _piece(data: bytes, path: str, at: str) -> tuple[str, float, int]:
    """Text, score and type of one piece."""
    n = data[1] if len(data) > 1 else 0
    # As the trainer writes it: text of up to 127 bytes, score, and perhaps a type of one byte.
    if n < 128 and data[:1] == b"\x0a" and data[n + 2 : n + 3] == b"\x15":
        rest = data[n + 7 :]
        if len(data) == n + 7 or (len(rest) == 2 and rest[0] == 0x18 and rest[1] < 128):
            kind = rest[1] if rest else NORMAL
            return _checked(data[2 : n + 2], data[n + 3 : n + 7], kind, path, at)
    row = _spec(data, PIECE, path, at + ".")
    score = row.get("score", b"\0\0\0\0")
    return _checked(row.get("piece", b""), score, row.get("type", NORMAL), path, at)


def _checked(raw: bytes, score: bytes, kind: int, path: str, at: str) -> tuple[str, float, int]:
    if not raw:  # at once, so that a file of nothing takes no time; the rest is for `check`
        raise FormatError(path, at + ".piece", "0 bytes", "a text", "out-of-range")
    if not NORMAL <= kind <= BYTE:
        raise FormatError(path, at + ".type", kind, "1 to 6", "out-of-range")
    return _text(raw, path, at + ".piece"), struct.unpack("<f", score)[0], kind


def _text(raw: bytes, path: str, where: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise FormatError(path, where, raw, "valid UTF-8", "bad-utf8") from None


def check(model: PieceModel, path: str, at: str = "pieces") -> None:
    """Raise FormatError unless the C++ library can be trusted with this model."""
    ids: dict[str, int] = {}
    if not 1 <= len(model.pieces) <= MOST_TOKENS:
        found, allowed = f"{len(model.pieces):,}", f"1 to {MOST_TOKENS:,}"
        raise FormatError(path, at, found, allowed, "limit")
    for i, text in enumerate(model.pieces):
        try:
            size = len(text) if text.isascii() else len(text.encode())
        except UnicodeEncodeError:
            raise FormatError(path, f"{at}[{i}]", text, "valid Unicode", "bad-utf8") from None
        if not 1 <= size <= LONGEST_TOKEN:
            allowed = f"1 to {LONGEST_TOKEN:,} bytes"
            code = "limit" if size else "out-of-range"
            raise FormatError(path, f"{at}[{i}]", f"{size:,} bytes", allowed, code)
        if "\0" in text:
            raise FormatError(path, f"{at}[{i}]", text, "no character 0", "unsafe")
        if ids.setdefault(text, i) != i:
            found = f"{text!r} again, after {ids[text]}"
            raise FormatError(path, f"{at}[{i}]", found, "each piece once", "dup-key")
    if not np.isfinite(np.frombuffer(model.scores, np.float32)).all():
        i = next(i for i, score in enumerate(model.scores) if not math.isfinite(score))
        found = f"score {model.scores[i]}"
        raise FormatError(path, f"{at}[{i}]", found, "a finite score", "out-of-range")

    if (unknown := model.types.count(UNKNOWN)) != 1:
        raise FormatError(path, at, f"{unknown} of type unknown", "exactly one", "missing-field")
    found_bytes = [
        text for text, kind in zip(model.pieces, model.types, strict=True) if kind == BYTE
    ]
    if model.byte_fallback and set(found_bytes) != set(BYTES):
        bad = next(
            (text for text in found_bytes if text not in BYTES), f"{len(found_bytes)} of them"
        )
        allowed = "<0x00> to <0xFF> as byte pieces"
        raise FormatError(path, at, bad, allowed, "missing-field")
    if found_bytes and not model.byte_fallback:
        allowed = "none, as there is no byte_fallback"
        raise FormatError(path, at, f"byte piece {found_bytes[0]}", allowed, "unknown-field")
    inside: list[str] = []  # each begins with the one before
    for text in sorted(t for t, kind in zip(model.pieces, model.types, strict=True)
                       if kind == USER_DEFINED):  # fmt: skip
        while inside and not text.startswith(inside[-1]):
            inside.pop()
        inside.append(text)
        if len(inside) > DEEPEST:
            found = f"{len(inside)} user-defined pieces that begin with one another"
            raise FormatError(path, at, found, f"at most {DEEPEST}", "limit")
    if model.table:
        _check_table(model.table, path)


def _check_table(table: bytes, path: str) -> None:
    """Compiled normalization rules: the size of a trie, the trie, texts that end with a 0 each.

    The trie is a double array (darts-clone), a list of 32-bit units. From a node with the base b,
    byte c leads to unit b ^ c, if its label is c; its base is its own place ^ its offset. A unit
    with a leaf has at its base a unit with the top bit set, the place of the text that replaces the
    key. The C++ follows these numbers wherever they lead: so every step that it can take is taken.
    """
    where = "normalizer_spec.precompiled_charsmap"

    def refuse(found: str, allowed: str, code: str = "out-of-range") -> NoReturn:
        raise FormatError(path, where, found, allowed, code)

    if len(table) > LARGEST_TABLE:
        refuse(f"{len(table):,} bytes", f"at most {LARGEST_TABLE:,}", "limit")
    size = int.from_bytes(table[:4], "little")
    if len(table) < 4 or size % 1024 or not 1024 <= size < len(table) - 4:
        refuse(f"a trie of {size:,} bytes in {len(table):,}", "a multiple of 1,024 that fits")
    texts = table[4 + size :]
    if texts[-1]:
        refuse("an unfinished text at the end", "texts that end with 0", "truncated")
    _text(texts, path, where)
    ends = np.frombuffer(texts, np.uint8) == 0
    longest = int(np.diff(np.flatnonzero(ends), prepend=-1).max()) - 1
    if longest > LONGEST_RULE:  # else a few bytes of text could become any number
        refuse(f"a rule that puts {longest:,} bytes", f"at most {LONGEST_RULE}", "limit")
    starts = np.concatenate([[True], ends[:-1]])

    units = np.frombuffer(table, "<u4", size // 4, 4)
    places = np.arange(len(units), dtype=np.uint32)
    bases = places ^ ((units >> 10) << ((units & 0x200) >> 6))
    labels = units & 0x800000FF
    parents = places ^ (labels & 0xFF)  # the base from which a unit would be reached
    nodes = np.zeros(1, np.uint32)  # the root, then all units one byte further
    for _ in range(LONGEST_KEY + 1):
        open_ = bases[nodes]
        if (open_ | 0xFF).max() >= len(units):
            refuse("a step out of the trie", f"units 0 to {len(units) - 1:,}", "overflow")
        is_base = np.zeros(len(units), bool)
        is_base[open_] = True
        nodes = places[is_base[parents] & (labels <= 0xFF)]
        if not len(nodes):
            return
        values = units[bases[nodes[(units[nodes] & 0x100) != 0]] % len(units)]
        bad = (values >> 31 == 0) | ((values & 0x7FFFFFFF) >= len(texts))
        if bad.any() or not starts[values & 0x7FFFFFFF].all():
            refuse("a rule without a text", "the beginning of a text for each")
    refuse(f"a key of over {LONGEST_KEY} bytes", f"at most {LONGEST_KEY}", "limit")


def to_bytes(model: PieceModel, *, dummy_prefix: bool | None = None) -> bytes:
    """The model as a protobuf again, with nothing in it but what `read` accepted."""
    out = bytearray()
    for text, score, kind in zip(model.pieces, model.scores, model.types, strict=True):
        row = _bytes_field(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        out += _bytes_field(1, row + (_int_field(3, kind) if kind != NORMAL else b""))
    prefix = model.dummy_prefix if dummy_prefix is None else dummy_prefix
    trainer = _int_field(3, UNIGRAM if model.unigram else BPE)
    trainer += _int_field(4, len(model.pieces)) + _int_field(35, model.byte_fallback)
    for n, (number, role) in enumerate(((45, "unk"), (46, "bos"), (47, "eos"), (48, "pad"))):
        name = model.roles[role]
        i = model.pieces.index(name) if name in model.pieces else -1
        trainer += _int_field(40 + n, i % 2**64) + _bytes_field(number, name.encode())
    normalizer = _bytes_field(2, model.table) if model.table else b""
    normalizer += _int_field(3, prefix) + _int_field(4, model.trim_spaces) + _int_field(5, 1)
    return bytes(out) + _bytes_field(2, trainer) + _bytes_field(3, normalizer)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | TEXT) + _varint(len(value)) + value
