"""Sentencepiece models as bytes: written by hand, cut, flipped and lied in; the C++ as judge."""

from __future__ import annotations

import io
import random
import struct
import time
import tracemalloc
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import sentencepiece

from minift.errors import FormatError
from minift.tokenizers import piece_model
from minift.tokenizers.piece_model import read, to_bytes
from minift.tokenizers.sentencepiece import SentencePiece

TEXTS = ["", "ab", "abc ab", "  a", "x", "the ﬁrst é 灯", "<s></s>", "aab" * 9]


def number(value: int) -> bytes:
    """A varint: seven bits a byte, the lowest first."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + number(value >> 7)


def part(field: int, value: bytes | int | float) -> bytes:
    """One field: a length and bytes (wire type 2), a varint (0) or four bytes (5)."""
    if isinstance(value, bytes):
        return number(field << 3 | 2) + number(len(value)) + value
    if isinstance(value, float):
        return number(field << 3 | 5) + struct.pack("<f", value)
    return number(field << 3) + number(value % 2**64)


def piece(text: str | bytes, score: float = 0.0, kind: int = 1, **more: bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    fields = part(1, raw) + part(2, float(score)) + (part(3, kind) if kind != 1 else b"")
    return part(1, fields + more.get("more", b""))


ROLES = [piece("<unk>", 0, 2), piece("<s>", 0, 3), piece("</s>", 0, 3)]
WORDS = [piece("▁", -9), piece("a", -8), piece("b", -7), piece("c", -6)]
WORDS += [piece("ab", -1), piece("▁ab", -2), piece("abc", -3)]
BYTES = [piece(f"<0x{byte:02X}>", 0, 6) for byte in range(256)]
TRAINER = part(2, part(3, 2))  # BPE
NORMALIZER = part(3, part(3, 1) + part(4, 0))
SPECS = TRAINER + NORMALIZER
SMALL = b"".join(ROLES + WORDS) + SPECS


def with_table(table: bytes) -> bytes:
    return b"".join(ROLES + WORDS) + TRAINER + part(3, part(2, table))


@cache
def rules() -> bytes:
    """A table that the library compiled, of three rules: ﬁ -> fi, é -> e, TAB -> space."""
    found = trained(rules={"\ufb01": "fi", "é": "e", "\t": " "})
    table = read(found, "trained").table
    assert len(table) > 1024
    return table


def trained(rules: dict[str, str] | None = None, **options: object) -> bytes:
    """A model that the library's trainer made, of 300 pieces."""
    import tempfile

    draw = random.Random(3)
    words = ["the", "light", "keeper", "climbs", "stairs", "lamp", "é", "ﬁrst", "a", "b", "c"]
    lines = [" ".join(draw.choices(words, k=8)) for _ in range(200)]
    out = io.BytesIO()
    usual: dict[str, object] = {"model_type": "bpe", "vocab_size": 300, "byte_fallback": True}
    usual |= {"normalization_rule_name": "identity", "num_threads": 1, "minloglevel": 2}
    with tempfile.TemporaryDirectory() as folder:
        if rules is not None:
            path = Path(folder, "rules.tsv")
            rows = [
                [" ".join(f"{ord(c):X}" for c in text) for text in row] for row in rules.items()
            ]
            path.write_text("".join("\t".join(row) + "\n" for row in rows))
            del usual["normalization_rule_name"]
            usual["normalization_rule_tsv"] = str(path)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=out, **(usual | options)
        )
    return out.getvalue()


def library(raw: bytes) -> Callable[[str], list[int]]:
    return sentencepiece.SentencePieceProcessor(model_proto=raw).encode


def same(raw: bytes) -> None:
    """What `to_bytes` writes encodes as the file itself does."""
    model = read(raw, "x.model")
    again = to_bytes(model)
    assert read(again, "again") == model
    theirs, ours = library(raw), library(again)
    for text in TEXTS:
        assert ours(text) == theirs(text), text


def test_what_a_model_says() -> None:
    model = read(SMALL, "x.model")
    assert model.pieces[2:5] == ["</s>", "▁", "a"]
    assert model.scores[8] == -2
    assert list(model.types[:4]) == [2, 3, 3, 1]
    assert not model.unigram
    assert not model.byte_fallback
    assert model.dummy_prefix
    assert not model.trim_spaces
    assert model.roles == {"unk": "<unk>", "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    same(SMALL)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model_type": "unigram", "vocab_size": 285},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"rules": {"\ufb01": "fi", "é": "e", "\t": " "}},
        {"user_defined_symbols": ["ab", "abc", "▁the"], "control_symbols": ["<x>"]},
        {"byte_fallback": False, "vocab_size": 50, "unk_piece": "?", "eos_piece": "<end>"},
        {"normalization_rule_name": "nmt_nfkc"},
    ],
)
def test_models_of_the_trainer_are_written_again_with_equal_ids(options: dict[str, object]) -> None:
    same(trained(**options))  # type: ignore[arg-type]


def test_the_order_of_fields_and_long_numbers_are_free() -> None:
    row = part(1, part(3, 4) + part(2, -1.0) + part(1, b"cc"))
    raw = SPECS + b"".join([row, *ROLES, *WORDS])
    assert read(raw, "x").pieces[0] == "cc"
    same(raw)
    long_type = part(1, part(1, b"cc") + part(2, 0.0) + b"\x18\x84\x00")  # 4 in two bytes
    assert read(SMALL + long_type, "x").types[-1] == 4
    same(SMALL + long_type)


def test_scores_and_types_have_defaults() -> None:
    model = read(SMALL + part(1, part(1, b"cc")), "x")
    assert (model.scores[-1], model.types[-1]) == (0.0, 1)


USER = [piece("u" * n, 0, 4) for n in range(1, 66)]
HUGE = 2**63
LIES = {
    "empty file": (b"", "missing-field"),
    "not a protobuf": (b"hello there", "unknown-field"),
    "a GGUF file": (b"GGUF\x03\0\0\0" + bytes(40), "unknown-field"),
    "zeros": (bytes(100), "unknown-field"),
    "no pieces": (SPECS, "limit"),
    "no trainer_spec": (b"".join(ROLES + WORDS) + NORMALIZER, "missing-field"),
    "no normalizer_spec": (b"".join(ROLES + WORDS) + TRAINER, "missing-field"),
    "trainer_spec twice": (SMALL + TRAINER, "dup-key"),
    "trailing byte": (SMALL + b"\x0a", "truncated"),
    "trailing zero": (SMALL + b"\0", "unknown-field"),
    "trailing text": (SMALL + b"junk", "unknown-field"),
    "no unk": (b"".join(ROLES[1:] + WORDS) + SPECS, "missing-field"),
    "two unks": (SMALL + piece("?", 0, 2), "missing-field"),
    "empty piece": (SMALL + piece(""), "out-of-range"),
    "no piece text": (SMALL + part(1, part(2, 0.0)), "out-of-range"),
    "empty message": (SMALL + part(1, b""), "out-of-range"),
    "NUL in a piece": (SMALL + piece("a\0b"), "unsafe"),
    "piece twice": (SMALL + piece("ab"), "dup-key"),
    "piece of 65,537 bytes": (SMALL + piece("x" * 65537), "limit"),
    "piece not UTF-8": (SMALL + piece(b"a\xff"), "bad-utf8"),
    "piece cut in a character": (SMALL + piece("é".encode()[:1]), "bad-utf8"),
    "surrogate in a piece": (SMALL + piece(b"\xed\xa0\x80"), "bad-utf8"),
    "score nan": (SMALL + piece("q", float("nan")), "out-of-range"),
    "score inf": (SMALL + piece("q", float("inf")), "out-of-range"),
    "score -inf": (SMALL + piece("q", -float("inf")), "out-of-range"),
    "score as a varint": (SMALL + part(1, part(1, b"q") + part(2, 5)), "bad-type"),
    "score as text": (SMALL + part(1, part(1, b"q") + part(2, b"1234")), "bad-type"),
    "score twice": (SMALL + piece("q", more=part(2, 0.0)), "dup-key"),
    "type 0": (SMALL + piece("q", 0, 0), "out-of-range"),
    "type 7": (SMALL + piece("q", 0, 7), "out-of-range"),
    "type -1": (SMALL + piece("q", 0, -1), "out-of-range"),
    "type 2**31": (SMALL + piece("q", 0, 2**31), "out-of-range"),
    "type as a float": (SMALL + part(1, part(1, b"q") + part(3, 1.0)), "bad-type"),
    "piece as a number": (SMALL + part(1, part(1, 5)), "bad-type"),
    "pieces as a number": (SMALL + part(1, 5), "bad-type"),
    "unknown field of a piece": (SMALL + piece("q", more=part(4, 1)), "unknown-field"),
    "unknown field of the model": (SMALL + part(6, b""), "unknown-field"),
    "field 0": (SMALL + b"\0\0", "unknown-field"),
    "a group": (SMALL + b"\x0b\x0c", "bad-type"),
    "wire type 7": (SMALL + b"\x0f", "bad-type"),
    "fixed64": (SMALL + b"\x11" + bytes(8), "bad-type"),
    "huge field number": (SMALL + number(2**40 << 3), "unknown-field"),
    "varint of 11 bytes": (SMALL + b"\x80" * 11, "overflow"),
    "varint over 64 bits": (SMALL + b"\xff" * 9 + b"\x7f", "overflow"),
    "unfinished varint": (SMALL + b"\x80", "truncated"),
    "length 2**63": (SMALL + b"\x0a" + number(HUGE), "truncated"),
    "length 2**32": (SMALL + b"\x0a" + number(2**32) + b"abc", "truncated"),
    "inner length too long": (SMALL + b"\x0a\x04\x0a\x09ab", "truncated"),
    "score cut": (SMALL + part(1, part(1, b"q") + b"\x15\0\0"), "truncated"),
    "model type 0": (b"".join(ROLES + WORDS) + part(2, part(3, 0)) + NORMALIZER, "out-of-range"),
    "words": (b"".join(ROLES + WORDS) + part(2, part(3, 3)) + NORMALIZER, "out-of-range"),
    "byte_fallback 2": (
        b"".join(ROLES + WORDS) + part(2, part(3, 2) + part(35, 2)) + NORMALIZER,
        "out-of-range",
    ),
    "space as a suffix": (
        b"".join(ROLES + WORDS) + part(2, part(24, 1)) + NORMALIZER,
        "unknown-field",
    ),
    "spaces not escaped": (
        b"".join(ROLES + WORDS) + TRAINER + part(3, part(5, 0)),
        "unknown-field",
    ),
    "a second normalization": (SMALL + part(5, part(2, b"x")), "unknown-field"),
    "unknown trainer field": (SMALL.replace(TRAINER, part(2, part(99, 1))), "unknown-field"),
    "role not UTF-8": (SMALL.replace(TRAINER, part(2, part(46, b"\xff"))), "bad-utf8"),
    "byte without fallback": (SMALL + BYTES[65], "unknown-field"),
    "255 byte pieces": (
        b"".join(ROLES + WORDS + BYTES[1:]) + part(2, part(35, 1)) + NORMALIZER,
        "missing-field",
    ),
    "a byte piece of another name": (
        b"".join([*ROLES, *BYTES, piece("<0xfg>", 0, 6)]) + part(2, part(35, 1)) + NORMALIZER,
        "missing-field",
    ),
    "a byte piece in lower case": (
        b"".join([*ROLES, *BYTES[:255], piece("<0xff>", 0, 6)]) + part(2, part(35, 1)) + NORMALIZER,
        "missing-field",
    ),
    "65 nested user-defined pieces": (SMALL + b"".join(USER), "limit"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies(name: str) -> None:
    raw, code = LIES[name]
    with pytest.raises(FormatError) as caught:
        read(raw, "x.model")
    assert caught.value.code == code, caught.value
    assert str(caught.value).startswith("x.model: ")
    assert "\n" not in str(caught.value)


def test_limits_are_met_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(read(SMALL + piece("x" * 65536), "x").pieces) == 11
    assert read(SMALL + b"".join(USER[:64]), "x")
    same(SMALL + b"".join(USER[:64]))
    monkeypatch.setattr(piece_model, "MOST_BYTES", len(SMALL))
    assert read(SMALL, "x")
    with pytest.raises(FormatError, match="at most"):
        read(SMALL + piece("q"), "x")
    monkeypatch.setattr(piece_model, "MOST_TOKENS", 9)
    with pytest.raises(FormatError, match="at most 9"):
        read(SMALL, "x")


def units(table: bytes) -> list[int]:
    size = int.from_bytes(table[:4], "little")
    return list(struct.unpack(f"<{size // 4}I", table[4 : 4 + size]))


def table_of(numbers: list[int], texts: bytes) -> bytes:
    return struct.pack(f"<I{len(numbers)}I", 4 * len(numbers), *numbers) + texts


EMPTY = 1 << 31  # what no byte leads to


def by_hand(value: int = 0, texts: bytes = b"x\0", root: int = 0, leaf: int = 1 << 31) -> bytes:
    """One rule, a -> x. Root at 0 with base 1 (offset 1); unit 1 ^ 97 = 96 has label 97, a leaf.

    Its base is 96 ^ offset 98 = 2, where the value stands.
    """
    numbers = [EMPTY] * 256
    numbers[0] = (root or 1) << 10
    numbers[96] = 98 << 10 | 0x100 | ord("a")
    numbers[2] = leaf | value
    return table_of(numbers, texts)


def test_a_table_by_hand_is_one_that_the_library_follows() -> None:
    raw = with_table(by_hand(texts=b"b\0"))
    assert read(raw, "x").table
    assert library(raw)("a") == library(raw)("b") != library(SMALL)("a")
    same(raw)
    same(with_table(rules()))


def chained(length: int) -> bytes:
    """One rule, a...a -> b, each unit's base in a block of its own."""
    numbers = [EMPTY] * 256 * (length + 2)
    place = numbers[0] = 0
    for n in range(1, length + 2):
        base = 256 * n
        numbers[place] |= (place ^ base) << 10
        if n <= length:
            place = base ^ ord("a")
            numbers[place] = ord("a")
    numbers[place] |= 0x100
    numbers[base] = 1 << 31
    return table_of(numbers, b"b\0")


BIG = units(by_hand())
TABLES = {
    "three bytes": (b"abc", "out-of-range"),
    "size 0": (bytes(4) + b"x\0", "out-of-range"),
    "size of no whole block": (struct.pack("<I", 1020) + bytes(1100), "out-of-range"),
    "size over the end": (struct.pack("<I", 2048) + bytes(1100), "out-of-range"),
    "size 2**32 - 1024": (struct.pack("<I", 2**32 - 1024) + bytes(1100), "out-of-range"),
    "no texts": (by_hand(texts=b""), "out-of-range"),
    "last text unfinished": (by_hand(texts=b"x\0y"), "truncated"),
    "texts not UTF-8": (by_hand(texts=b"\xff\0"), "bad-utf8"),
    "root leads out": (by_hand(root=1 << 20), "overflow"),
    "leaf leads out": (table_of([*BIG[:96], 1 << 31 | 0, *BIG[97:]], b"x\0"), None),
    "inner step leads out": (
        table_of([*BIG[:96], 4096 << 10 | ord("a"), *BIG[97:]], b"x\0"),
        "overflow",
    ),
    "shifted step leads out": (
        table_of([*BIG[:96], 0x200 | 99 << 10 | ord("a"), *BIG[97:]], b"x\0"),
        "overflow",
    ),
    "value after the texts": (by_hand(value=2), "out-of-range"),
    "value far after the texts": (by_hand(value=2**31 - 1), "out-of-range"),
    "value within a text": (by_hand(value=1, texts=b"xy\0"), "out-of-range"),
    "value without its bit": (by_hand(leaf=0), "out-of-range"),
    "a rule of 64 bytes": (table_of(BIG, b"x" * 64 + b"\0"), None),
    "a rule of 65 bytes": (table_of(BIG, b"x" * 65 + b"\0"), "limit"),
    "a rule of 30,000 letters": (table_of(BIG, b"x" * 30_000 + b"\0"), "limit"),
    "a loop": (table_of([*BIG[:96], (96 ^ 1) << 10 | ord("a"), *BIG[97:]], b"x\0"), "limit"),
    "a key of 33 bytes": (chained(33), "limit"),
    "over 16 MiB": (bytes((16 << 20) + 1), "limit"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_that_would_lead_the_library_astray(name: str) -> None:
    table, code = TABLES[name]
    if code is None:  # a unit that no step reaches
        return same(with_table(table))
    with pytest.raises(FormatError, match="precompiled_charsmap") as caught:
        read(with_table(table), "x.model")
    assert caught.value.code == code


def test_a_key_of_32_bytes_is_followed() -> None:
    raw = with_table(chained(32))
    same(raw)
    assert library(raw)("a" * 32) == library(raw)("b")


def test_every_cut_is_refused() -> None:
    for raw in (SMALL, with_table(by_hand())):
        for end in range(len(raw)):
            with pytest.raises(FormatError):
                read(raw[:end], "x")


def test_every_flipped_bit_is_refused_or_means_what_the_library_says() -> None:
    taken = 0
    for bit in range(8 * len(SMALL)):
        raw = bytearray(SMALL)
        raw[bit // 8] ^= 1 << bit % 8
        try:
            read(bytes(raw), "x")
        except FormatError:
            continue
        taken += 1
        same(bytes(raw))
    assert 100 < taken < 4 * len(SMALL)


def mutated(seed: random.Random) -> bytes:
    """A file that was valid once."""
    numbers = [0, 1, 8, 127, 128, 255, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 64) - 1]
    data = bytearray(seed.choice([SMALL, with_table(by_hand()), with_table(rules())]))
    for _ in range(seed.randint(1, 3)):
        at = seed.randrange(len(data))
        match seed.randrange(6):
            case 0:
                data[at] = seed.randrange(256)
            case 1:
                del data[at : at + seed.randint(1, 8)]
            case 2:
                data[at:at] = number(seed.choice(numbers))
            case 3:
                data[at : at + 4] = struct.pack("<I", seed.choice(numbers) & 0xFFFFFFFF)
            case 4:
                data[at:at] = data[at : at + seed.randint(1, 40)]
            case 5:
                data[at] ^= 1 << seed.randrange(8)
        data = data or bytearray(1)
    return bytes(data)


def test_fuzz() -> None:
    """Mutated files: a FormatError, or a model that the library takes, with equal ids."""
    seed, taken = random.Random(0), 0
    for _ in range(3000):
        raw = mutated(seed)
        try:
            tokenizer = SentencePiece.from_model(raw, None, "memory")
        except FormatError:
            continue
        taken += 1
        theirs = library(raw)
        for text in TEXTS:
            assert tokenizer.encode(text) == theirs(text), text
    assert taken > 100


MEGABYTES = [
    SMALL + piece("q") * 60_000,
    SPECS + b"\x0a\x00" * 500_000,
    SMALL + b"".join(piece(str(n)) for n in range(60_000)) + piece("", 0),
    SMALL.replace(TRAINER, part(2, part(30, b"") * 300_000 + part(3, 9))),
    with_table(table_of(random.Random(1).choices(range(2**32), k=250_112), b"x\0")),
    with_table(table_of([256 * 900 << 10 | 97] * 250_112, b"x\0")),
    SMALL + b"\x0a" + number(2**62),
]


@pytest.mark.parametrize("raw", MEGABYTES, ids=range(len(MEGABYTES)))
def test_a_megabyte_of_lies_takes_no_second_and_no_64_megabytes(raw: bytes) -> None:
    begin = time.process_time()
    with pytest.raises(FormatError):
        read(raw, "x")
    assert time.process_time() - begin < 1
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            read(raw[: len(raw) // 4] + raw[-8:], "x")  # tracemalloc is slow
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""
    cases = dict(LIES)
    for name, (table, code) in TABLES.items():
        if code is not None:
            cases[f"table: {name}"] = with_table(table), code
    codes = ("dup-key", "out-of-range", "out-of-range", "out-of-range", "overflow", "limit")
    for number_, (raw, code) in enumerate(zip(MEGABYTES, (*codes, "truncated"), strict=True)):
        cases[f"megabyte {number_}"] = raw, code
    cases["a hundred thousand fields of nothing"] = SMALL + part(6, b"") * 100_000, "unknown-field"
    cases["a megabyte of one number"] = b"\x80" * (1 << 20), "overflow"
    return {
        name: (lambda folder, raw=raw: SentencePiece.from_model(raw, None, "x.model"), code)
        for name, (raw, code) in cases.items()
    }
