"""The GGUF reader: a file built by hand, the real one, hostile files, every cut, every bit."""

from __future__ import annotations

import os
import random
import struct
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minift.errors import FormatError
from minift.formats import gguf
from minift.kernels.quantized.reference import BLOCKS, dequantize

U8, I8, U16, I16, U32, I32, F32, BOOL, TEXT, ARRAY, U64, I64, F64 = range(13)
STRUCTS = "BbHhIifB__Qqd"  # of the types above
KINDS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8}
KINDS |= {"Q5_0": 6, "Q5_1": 7, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
KINDS |= {"I8": 24, "I16": 25, "I32": 26, "I64": 27, "F64": 28, "BF16": 30}
GOLDEN = Path(__file__).parents[1] / "golden" / "gguf_blocks.npz"
BIG = 1 << 64


# ---- a writer, for tests only --------------------------------------------------------------------


def text(value: str | bytes, length: int | None = None) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def scalar(kind: int, value: Any) -> bytes:
    return text(value) if kind == TEXT else struct.pack("<" + STRUCTS[kind], value)


def array(kind: int, values: list, length: int | None = None) -> bytes:
    head = struct.pack("<IQ", kind, len(values) if length is None else length)
    return head + b"".join(scalar(kind, value) for value in values)


def pair(key: str | bytes, kind: int, value: Any) -> bytes:
    return text(key) + struct.pack("<I", kind) + scalar(kind, value)


def arrays(key: str, kind: int, values: list, length: int | None = None) -> bytes:
    return text(key) + struct.pack("<I", ARRAY) + array(kind, values, length)


def info(
    name: str | bytes = "w",
    dims: tuple[int, ...] = (2,),
    kind: int = 0,
    offset: int = 0,
    rank: int | None = None,
) -> bytes:
    head = text(name) + struct.pack("<I", len(dims) if rank is None else rank)
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


def built(
    pairs: tuple[bytes, ...] = (),
    infos: tuple[bytes, ...] = (info(),),
    data: bytes = bytes(8),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
    filler: bytes = b"\0",
) -> bytes:
    counts = (len(infos), len(pairs)) if counts is None else counts
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join((*pairs, *infos))
    return head + filler * (-len(head) % alignment) + data


def aligned_to(value: int, kind: int = U32) -> bytes:
    return pair("general.alignment", kind, value)


PAIRS = (
    pair("general.architecture", TEXT, "llama"),
    *(pair(f"n.{kind}", kind, 100 + kind) for kind in (U8, I8, U16, I16, U32, I32, U64, I64)),
    *(pair(f"m.{kind}", kind, -100) for kind in (I8, I16, I32, I64)),
    pair("f32", F32, 0.5),
    pair("f64", F64, 0.1),
    pair("yes", BOOL, True),
    pair("no", BOOL, False),
    pair("empty", TEXT, ""),
    arrays("texts", TEXT, ["a", "Ġb", "", "日本", "a" * 300]),
    arrays("types", I32, [1, -2, 3]),
    arrays("scores", F32, [0.25, -1.0]),
    arrays("flags", BOOL, [True, False]),
    arrays("nothing", U64, []),
    arrays("no texts", TEXT, []),
)
METADATA = {
    "general.architecture": "llama",
    **{f"n.{kind}": 100 + kind for kind in (U8, I8, U16, I16, U32, I32, U64, I64)},
    **{f"m.{kind}": -100 for kind in (I8, I16, I32, I64)},
    "f32": 0.5,
    "f64": 0.1,
    "yes": True,
    "no": False,
    "empty": "",
    "texts": ["a", "Ġb", "", "日本", "a" * 300],
    "types": [1, -2, 3],
    "scores": [0.25, -1.0],
    "flags": [True, False],
    "nothing": [],
    "no texts": [],
}
F32_DATA = np.arange(6, dtype="<f4").tobytes() + bytes(8)  # 24 bytes and 8 of padding
I16_DATA = np.array([-1, 2, 3], "<i2").tobytes()
SMALL = built(PAIRS, (info("w", (3, 2)), info("i", (3,), 25, 32)), F32_DATA + I16_DATA + bytes(26))

HALF = 1 << 63
GOOD = {
    "small": SMALL,
    "version 2": built(version=2),
    "padding at the end left out": built(data=bytes(8)),
    "padding at the end": built(data=bytes(32)),
    "some padding at the end": built(data=bytes(20)),
    "no tensors": built(infos=(), data=b"")[:24],
    "no tensors, padded": built(infos=(), data=b""),
    "scalar": built(infos=(info(dims=()),), data=bytes(4)),
    "empty tensor": built(infos=(info(dims=(0, 3)),), data=b""),
    "empty tensor between": built(
        infos=(info("a"), info("b", (0,), 0, 32), info("c", (2,), 0, 32)), data=bytes(40)
    ),
    "alignment 8": built((aligned_to(8),), alignment=8),
    "alignment 1 MiB": built((aligned_to(1 << 20),), alignment=1 << 20),
    "rank 4": built(infos=(info(dims=(1, 2, 1, 1)),)),
    "name of 512 bytes": built(infos=(info("n" * 512),)),
}
BAD = {
    "empty file": (b"", "truncated"),
    "magic only": (b"GGUF", "truncated"),
    "23 bytes": (SMALL[:23], "truncated"),
    "magic of GGML": (built(magic=b"ggjt"), "bad-magic"),
    "magic byte-swapped": (built(magic=b"FUGG"), "bad-magic"),
    "magic lower-case": (built(magic=b"gguf"), "bad-magic"),
    "version 0": (built(version=0), "bad-version"),
    "version 1": (built(version=1), "bad-version"),
    "version 4": (built(version=4), "bad-version"),
    "version 3 byte-swapped": (built(version=3 << 24), "bad-version"),
    "version 2^32 - 1": (built(version=(1 << 32) - 1), "bad-version"),
    "100,000 tensors, none there": (built(counts=(100_000, 0)), "truncated"),
    "100,001 tensors": (built(counts=(100_001, 0)), "limit"),
    "2^32 tensors": (built(counts=(1 << 32, 0)), "limit"),
    "2^60 tensors": (built(counts=(1 << 60, 0)), "limit"),
    "2^64 - 1 tensors": (built(counts=(BIG - 1, 0)), "limit"),
    "one tensor too many": (built(counts=(2, 0)), "truncated"),
    "a tensor less than there is": (built(counts=(0, 0)), "trailing"),
    "1,000 pairs, none there": (built(counts=(1, 1000)), "truncated"),
    "2^32 pairs": (built(counts=(1, 1 << 32)), "truncated"),
    "2^60 pairs": (built(counts=(1, 1 << 60)), "truncated"),
    "2^64 - 1 pairs": (built(counts=(1, BIG - 1)), "truncated"),
    "empty key": (built((pair("", U8, 1),)), "unsafe"),
    "key of 513 bytes": (built((pair("k" * 513, U8, 1),)), "unsafe"),
    "key is a path": (built((pair("../k", U8, 1),)), "unsafe"),
    "key with NUL": (built((pair("a\0", U8, 1),)), "unsafe"),
    "key not UTF-8": (built((pair(b"\xff", U8, 1),)), "bad-utf8"),
    "key twice": (built((pair("k", U8, 1), pair("k", U8, 1))), "dup-key"),
    "key of 2^32 bytes": (built((text("k", 1 << 32) + bytes(20),)), "truncated"),
    "key of 2^60 bytes": (built((text("k", 1 << 60) + bytes(20),)), "truncated"),
    "key of 2^64 - 1 bytes": (built((text("k", BIG - 1) + bytes(20),)), "truncated"),
    "key of -8 bytes": (built((text("k", BIG - 8) + bytes(20),)), "truncated"),
    "type 13": (built((text("k") + struct.pack("<II", 13, 0),)), "bad-type"),
    "type 2^32 - 1": (built((text("k") + struct.pack("<II", (1 << 32) - 1, 0),)), "bad-type"),
    "bool 2": (built((pair("k", BOOL, 2),)), "out-of-range"),
    "bool 255": (built((pair("k", BOOL, 255),)), "out-of-range"),
    "bool 2 in an array": (built((arrays("k", BOOL, [0, 1, 2]),)), "out-of-range"),
    "text of 2^32 bytes": (
        built((text("k") + struct.pack("<I", TEXT) + text("v", 1 << 32),)),
        "truncated",
    ),
    "text of 2^64 - 1 bytes": (
        built((text("k") + struct.pack("<I", TEXT) + text("v", BIG - 1),)),
        "truncated",
    ),
    "text not UTF-8": (built((pair("k", TEXT, b"\xc3"),)), "bad-utf8"),
    "text with a surrogate": (built((pair("k", TEXT, b"\xed\xa0\x80"),)), "bad-utf8"),
    "array of arrays": (built((arrays("k", ARRAY, [], 1),)), "bad-type"),
    "empty array of arrays": (built((arrays("k", ARRAY, []),)), "bad-type"),
    "array of type 13": (built((arrays("k", 13, [], 1),)), "bad-type"),
    "array of 2^32": (built((arrays("k", U8, [], 1 << 32),)), "truncated"),
    "array of 2^60": (built((arrays("k", U64, [], 1 << 60),)), "truncated"),
    "array of 2^61, 8 bytes each": (built((arrays("k", U64, [], 1 << 61),)), "truncated"),
    "array of 2^64 - 1": (built((arrays("k", U8, [], BIG - 1),)), "truncated"),
    "array of 2^60 texts": (built((arrays("k", TEXT, [], 1 << 60),)), "truncated"),
    "array of 2^64 - 1 texts": (built((arrays("k", TEXT, [], BIG - 1),)), "truncated"),
    "array longer than there is": (built((arrays("k", I32, [1, 2], 1000),)), "truncated"),
    "text in an array not UTF-8": (built((arrays("k", TEXT, [b"\xff"]),)), "bad-utf8"),
    "text in an array too long": (
        built((text("k") + struct.pack("<IIQ", ARRAY, TEXT, 1) + text("v", 1 << 40),)),
        "truncated",
    ),
    "alignment 0": (built((aligned_to(0),)), "out-of-range"),
    "alignment 1": (built((aligned_to(1),)), "out-of-range"),
    "alignment 4": (built((aligned_to(4),)), "out-of-range"),
    "alignment 24": (built((aligned_to(24),)), "out-of-range"),
    "alignment 2 MiB": (built((aligned_to(2 << 20),)), "out-of-range"),
    "alignment 2^31": (built((aligned_to(1 << 31),)), "out-of-range"),
    "alignment as uint64": (built((aligned_to(32, U64),)), "bad-type"),
    "alignment as int32": (built((aligned_to(32, I32),)), "bad-type"),
    "alignment as text": (built((pair("general.alignment", TEXT, "32"),)), "bad-type"),
    "alignment as bool": (built((pair("general.alignment", BOOL, 1),)), "bad-type"),
    "empty tensor name": (built(infos=(info(""),)), "unsafe"),
    "tensor name of 513 bytes": (built(infos=(info("n" * 513),)), "unsafe"),
    "tensor name not UTF-8": (built(infos=(info(b"\xff"),)), "bad-utf8"),
    "tensor name is a path": (built(infos=(info("../../w"),)), "unsafe"),
    "tensor name is absolute": (built(infos=(info("/etc/passwd"),)), "unsafe"),
    "tensor name of 2^64 - 1": (built(infos=(text("w", BIG - 1) + bytes(30),)), "truncated"),
    "tensor twice": (built(infos=(info(), info(offset=32)), data=bytes(40)), "dup-key"),
    "rank 5": (built(infos=(info(dims=(1, 1, 1, 1, 2)),)), "limit"),
    "rank 2^32 - 1": (built(infos=(info(rank=(1 << 32) - 1),)), "limit"),
    "dimension 2^32": (built(infos=(info(dims=(1 << 32,)),)), "truncated"),
    "dimension 2^60": (built(infos=(info(dims=(1 << 60,)),)), "overflow"),
    "dimension 2^64 - 1": (built(infos=(info(dims=(BIG - 1,)),)), "overflow"),
    "dimension -2": (built(infos=(info(dims=(BIG - 2,)),)), "overflow"),
    "a product that wraps to 2": (built(infos=(info(dims=(1 << 62, 4, HALF + 1, 2)),)), "overflow"),
    "a product that wraps to 0": (built(infos=(info(dims=(1 << 32, 1 << 32)),)), "overflow"),
    "huge but empty": (built(infos=(info(dims=(0, 1 << 40, 1 << 40)),), data=b""), "overflow"),
    "kind 4, removed": (built(infos=(info(kind=4),)), "bad-dtype"),
    "kind 31, removed": (built(infos=(info(kind=31),)), "bad-dtype"),
    "kind 36, removed": (built(infos=(info(kind=36),)), "bad-dtype"),
    "kind Q8_K": (built(infos=(info(kind=15, dims=(256,)),), data=bytes(292)), "bad-dtype"),
    "row of 255 of Q6_K": (
        built(infos=(info(kind=14, dims=(255,)),), data=bytes(210)),
        "shape-mismatch",
    ),
    "row of 128 of Q2_K": (
        built(infos=(info(kind=10, dims=(128, 2)),), data=bytes(84)),
        "shape-mismatch",
    ),
    "Q6_K cut": (built(infos=(info(kind=14, dims=(256,)),), data=bytes(209)), "truncated"),
    "kind IQ2_XXS": (built(infos=(info(kind=16, dims=(256,)),), data=bytes(66)), "bad-dtype"),
    "kind 42": (built(infos=(info(kind=42),)), "bad-dtype"),
    "kind 2^32 - 1": (built(infos=(info(kind=(1 << 32) - 1),)), "bad-dtype"),
    "a row that is half a block": (
        built(infos=(info(dims=(16, 2), kind=8),), data=bytes(34)),
        "shape-mismatch",
    ),
    "a scalar of blocks": (built(infos=(info(dims=(), kind=8),), data=bytes(34)), "shape-mismatch"),
    "offset unaligned": (built(infos=(info(offset=4),), data=bytes(12)), "out-of-range"),
    "offset 2^60": (built(infos=(info(offset=1 << 60),)), "hole"),
    "offset 2^64 - 32": (built(infos=(info(offset=BIG - 32),)), "hole"),
    "offset 2^64 - 1": (built(infos=(info(offset=BIG - 1),)), "out-of-range"),
    "hole at the beginning": (built(infos=(info(offset=32),), data=bytes(40)), "hole"),
    "hole between": (
        built(infos=(info("a"), info("b", offset=64)), data=bytes(72)),
        "hole",
    ),
    "overlap": (built(infos=(info("a"), info("b", offset=0)), data=bytes(40)), "overlap"),
    "out of order": (
        built(infos=(info("a", offset=32), info("b", offset=0)), data=bytes(40)),
        "hole",
    ),
    "data cut": (built(data=bytes(7)), "truncated"),
    "no data": (built(data=b""), "truncated"),
    "no padding before the data": (built(filler=b"", data=b""), "truncated"),
    "one byte after the padding": (built(data=bytes(33)), "trailing"),
    "data after the tensors": (built(data=bytes(8) + b"hidden"), "trailing"),
    "data in the padding before": (built(filler=b"\1"), "hole"),
    "data in the padding between": (
        built(infos=(info("a"), info("b", offset=32)), data=bytes(8) + b"x" * 24 + bytes(8)),
        "hole",
    ),
    "counts byte-swapped": (built(counts=(1 << 56, 0)), "limit"),
    "-1 tensors": (built(counts=(BIG - 1, BIG - 1)), "limit"),
    "a pair less than there is": (built((pair("k", U8, 1),), counts=(1, 0)), "bad-dtype"),
    "key with a line end": (built((pair("a\nb", U8, 1),)), "unsafe"),
    "key is a Windows path": (built((pair("..\\k", U8, 1),)), "unsafe"),
    "key twice, of two types": (built((pair("k", U8, 1), pair("k", TEXT, "1"))), "dup-key"),
    "alignment twice": (built((aligned_to(32), aligned_to(64))), "dup-key"),
    "alignment as an array": (built((arrays("general.alignment", U32, [32]),)), "bad-type"),
    "alignment as float": (built((pair("general.alignment", F32, 32.0),)), "bad-type"),
    "alignment 2^32 - 1": (built((aligned_to((1 << 32) - 1),)), "out-of-range"),
    "alignment that the tensors do not keep": (
        built((aligned_to(64),), (info("a"), info("b", offset=32)), bytes(40), alignment=64),
        "out-of-range",
    ),
    "bool -1 in an array": (built((arrays("k", BOOL, [255]),)), "out-of-range"),
    "array of type 2^32 - 1": (built((arrays("k", (1 << 32) - 1, [], 1),)), "bad-type"),
    "array of bools longer than there is": (built((arrays("k", BOOL, [], 1 << 20),)), "truncated"),
    "array of texts, the last cut": (
        built((arrays("k", TEXT, ["a", "b"], 3),), (), b"", filler=b""), "truncated",
    ),
    "array without a count": (built((text("k") + struct.pack("<II", ARRAY, U8),)), "truncated"),
    "value that is missing": (
        built((text("k") + struct.pack("<I", F64),), (), b"", filler=b""), "truncated",
    ),
    "text of 2^63 bytes": (
        built((text("k") + struct.pack("<I", TEXT) + text("v", HALF),)), "truncated",
    ),
    "overlong UTF-8": (built((pair("k", TEXT, b"\xc0\x80"),)), "bad-utf8"),
    "tensor name with NUL": (built(infos=(info("w\0"),)), "unsafe"),
    "tensor name with an escape": (built(infos=(info("\x1b[2J"),)), "unsafe"),
    "tensor name is ..": (built(infos=(info(".."),)), "unsafe"),
    "tensor name is a Windows path": (built(infos=(info("c:\\w"),)), "unsafe"),
    "tensor name with a surrogate": (built(infos=(info(b"\xed\xa0\x80"),)), "bad-utf8"),
    "dimension 2^63": (built(infos=(info(dims=(HALF,)),)), "overflow"),
    "dimension 0 and 2^64 - 1": (built(infos=(info(dims=(0, BIG - 1)),), data=b""), "overflow"),
    "a dimension less than there is": (
        built(infos=(info(dims=(1,)),), data=b"12345678"), "trailing",
    ),
    "a dimension more than there is": (built(infos=(info(dims=(3,)),)), "truncated"),
    "kind 5, removed": (built(infos=(info(kind=5),)), "bad-dtype"),
    "kind 33, removed": (built(infos=(info(kind=33),)), "bad-dtype"),
    "kind Q8_1": (built(infos=(info(kind=9, dims=(32,)),), data=bytes(36)), "bad-dtype"),
    "kind TQ1_0": (built(infos=(info(kind=34, dims=(256,)),), data=bytes(54)), "bad-dtype"),
    "kind MXFP4": (built(infos=(info(kind=39, dims=(32,)),), data=bytes(17)), "bad-dtype"),
    "Q4_0 cut": (built(infos=(info(kind=2, dims=(32,)),), data=bytes(17)), "truncated"),
    "F64 in the room of F32": (built(infos=(info(kind=28, dims=(2,)),)), "truncated"),
    "offset of the second 0": (
        built(infos=(info("a", (64,)), info("b", (2,), 0, 0)), data=bytes(264)), "overlap",
    ),
    "offset 32 too far": (built(infos=(info("a"), info("b", offset=64)), data=bytes(40)), "hole"),
    "empty tensor beyond the end": (built(infos=(info(dims=(0,), offset=32),), data=b""), "hole"),
    "two files": (SMALL + SMALL, "trailing"),
    "a text file": (b"GGUF is a format\n" * 9, "bad-version"),
    "a safetensors file": ((60).to_bytes(8, "little") + b'{"w":' + bytes(60), "bad-magic"),
    "30,000 pairs of one key": (built((pair("k", U8, 0),) * 30_000), "dup-key"),
    "30,000 tensors of one name": (built(infos=(info(),) * 30_000), "dup-key"),
    "130,000 texts, the last not UTF-8": (
        built((arrays("k", TEXT, [""] * 130_000 + [b"\xff"]),)), "bad-utf8",
    ),
    "a million booleans, the last 2": (
        built((arrays("k", BOOL, [], (1 << 20) + 1) + bytes(1 << 20) + b"\2",)), "out-of-range",
    ),
    "130,000 numbers and nothing else": (
        built((arrays("k", F64, [], 131_000) + bytes(8 * 131_000),), counts=(2, 1)), "unsafe",
    ),
}  # fmt: skip


Read = Callable[[bytes], gguf.GgufFile]


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Read bytes without a file in between: for the tests that read thousands."""

    def read(data: bytes) -> gguf.GgufFile:
        monkeypatch.setattr(gguf, "map_file", lambda path: bytearray(data))
        return gguf.read("memory")

    return read


def opened(folder: Path, data: bytes) -> gguf.GgufFile:
    path = folder / "w.gguf"
    path.write_bytes(data)
    return gguf.read(path)


def test_small_file(tmp_path: Path) -> None:
    file = opened(tmp_path, SMALL)
    assert file.version == 3
    assert file.metadata == METADATA
    assert repr(file.metadata) == repr(METADATA)  # True is not 1, 2.0 is not 2
    assert {name: (e.kind, e.shape) for name, e in file.tensors.items()} == {
        "w": ("F32", (2, 3)),
        "i": ("I16", (3,)),
    }
    assert torch.equal(file.load("w"), torch.tensor([[0.0, 1, 2], [3, 4, 5]]))
    assert torch.equal(file.load("i"), torch.tensor([-1, 2, 3], dtype=torch.int16))


@pytest.mark.parametrize("name", GOOD)
def test_takes(name: str, tmp_path: Path) -> None:
    file = opened(tmp_path, GOOD[name])
    for key, entry in file.tensors.items():
        assert tuple(file.load(key).shape) == entry.shape


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str, tmp_path: Path) -> None:
    data, code = BAD[name]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            opened(tmp_path, data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert str(caught.value).startswith(str(tmp_path / "w.gguf"))
    assert "\n" not in str(caught.value)
    assert peak < (1 << 20) + 40 * len(data)


def test_a_kind_that_minift_does_not_load_is_named_with_those_that_it_does(tmp_path: Path) -> None:
    data, _ = BAD["kind IQ2_XXS"]
    allowed = r"found IQ2_XXS, allowed F32, .*, Q4_1, .*, Q6_K$"
    with pytest.raises(FormatError, match=rf'tensor "w" kind: {allowed}'):
        opened(tmp_path, data)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("Q")])
def test_blocks(kind: str, tmp_path: Path) -> None:
    with np.load(GOLDEN) as golden:
        raw, values = golden[f"{kind}.sane.raw"], golden[f"{kind}.sane.values"]
    data = raw.tobytes()
    dims = values.shape[::-1]
    file = opened(tmp_path, built(infos=(info("w", dims, KINDS[kind]),), data=data))
    assert torch.equal(file.load("w"), torch.from_numpy(values))
    bf16 = torch.from_numpy(values).to(torch.bfloat16)
    assert torch.equal(file.load("w", torch.bfloat16), bf16)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_floats(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    values = torch.tensor([[0.5, -1.25, 3.0], [65280.0, 1.0, 2.0**-14]])  # exact in each of them
    stored = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    data = values.to(stored.get(kind, torch.float64)).view(torch.uint8).numpy().tobytes()
    file = opened(tmp_path, built(infos=(info("w", (3, 2), KINDS[kind]),), data=data))
    found = file.load("w", dtype)
    assert found.dtype == dtype
    assert torch.equal(found, values.to(dtype))


@pytest.mark.parametrize("kind", ["I8", "I16", "I32", "I64"])
def test_integers_stay_integers(kind: str, tmp_path: Path) -> None:
    expected = torch.tensor([-1, 100, 0], dtype=getattr(torch, f"int{kind[1:]}"))
    data = expected.numpy().tobytes()
    file = opened(tmp_path, built(infos=(info("w", (3,), KINDS[kind]),), data=data))
    found = file.load("w", torch.bfloat16)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("limit", "value", "at_limit", "over"),
    [
        (
            "TENSOR_LIMIT",
            1,
            built(),
            built(infos=(info("a"), info("b", offset=32)), data=bytes(40)),
        ),
        ("TEXT_LIMIT", 4, built((pair("k", TEXT, "1234"),)), built((pair("k", TEXT, "12345"),))),
        ("HEADER_LIMIT", 24 + 33, built(), built(infos=(info("ww"),))),
        ("RANK_LIMIT", 1, built(), built(infos=(info(dims=(2, 1)),))),
    ],
)
def test_limits(
    limit: str, value: int, at_limit: bytes, over: bytes, in_memory: Read,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(gguf, limit, value)
    assert in_memory(at_limit).tensors.keys() == {"w"}
    with pytest.raises(FormatError) as caught:
        in_memory(over)
    assert caught.value.code in ("limit", "too-large")


def test_hostile_megabyte_stays_small(in_memory: Read) -> None:
    """A million bytes, arranged to become as many Python objects as they can."""
    files = [
        built((arrays("k", TEXT, [], 50_000),), data=bytes(1 << 20)),
        built((arrays("k", BOOL, [], 1 << 20),), data=bytes(1 << 20)),
        built((arrays("k", F64, [], 131_000),), data=bytes(1 << 20)),
        built(tuple(pair(f"{i:x}", U8, 0) for i in range(30_000))),
    ]
    for data in files:
        tracemalloc.start()
        try:
            in_memory(data)
        except FormatError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 64 << 20


def test_every_cut_is_refused(in_memory: Read) -> None:
    last = len(SMALL) - 26  # where the padding at the end begins, which may be left out
    for size in range(last):
        with pytest.raises(FormatError):
            in_memory(SMALL[:size])
    for size in range(last, len(SMALL) + 1):
        assert in_memory(SMALL[:size]).tensors.keys() == {"w", "i"}


def test_every_flipped_bit_of_the_header_is_refused_or_keeps_the_rules(in_memory: Read) -> None:
    """What is still accepted differs in a text, a value or a kind of the same size."""
    start = in_memory(SMALL).tensors["w"].start
    for bit in range(8 * start):
        data = bytearray(SMALL)
        data[bit // 8] ^= 1 << bit % 8
        try:
            file = in_memory(bytes(data))
        except FormatError:
            continue
        assert len(file.metadata) == len(METADATA)
        assert [e.start - start for e in file.tensors.values()] == [0, 32]
        assert all(e.stop <= len(SMALL) for e in file.tensors.values())


def mutated(seed: random.Random) -> bytes:
    """A file that was valid once."""
    numbers = [0, 1, 8, 255, 1 << 31, 1 << 32, 1 << 60, (1 << 63) - 1, BIG - 1]
    data = bytearray(seed.choice([SMALL, GOOD["empty tensor between"], GOOD["alignment 8"]]))
    for _ in range(seed.randint(1, 3)):
        at = seed.randrange(len(data))
        match seed.randrange(5):
            case 0:
                data[at] = seed.randrange(256)
            case 1:
                del data[at : at + seed.randint(1, 8)]
            case 2:
                data[at : at + 8] = seed.choice(numbers).to_bytes(8, "little")
            case 3:
                data[at : at + 4] = seed.randrange(64).to_bytes(4, "little")
            case 4:
                data[at:at] = data[at : at + seed.randint(1, 40)]
        data = data or bytearray(1)
    return bytes(data)


def test_fuzz(in_memory: Read) -> None:
    """Mutated files: a FormatError, or tensors that all load."""
    seed = random.Random(0)
    for _ in range(3000):
        try:
            file = in_memory(mutated(seed))
            for name in file.tensors:
                file.load(name)
        except FormatError:
            pass


def test_loaded_tensors_never_reach_the_file_nor_each_other(tmp_path: Path) -> None:
    file = opened(tmp_path, SMALL)
    for name in file.tensors:
        file.load(name).zero_()
    assert file.path.read_bytes() == SMALL
    assert torch.equal(file.load("i"), torch.tensor([-1, 2, 3], dtype=torch.int16))


def test_blocks_as_they_are_stored() -> None:
    """The bytes themselves, a row of weights a row, and memory that is not the file's."""
    path = Path(__file__).parents[1] / "golden" / "gguf_file.gguf"
    file = gguf.read(path)
    found = 0
    for name, entry in file.tensors.items():
        if entry.kind not in BLOCKS or len(entry.shape) != 2:
            continue
        weights, size = BLOCKS[entry.kind]
        blocks = file.blocks(name)
        assert blocks.shape == (entry.shape[0], entry.shape[1] // weights * size)
        assert blocks.numpy().tobytes() == path.read_bytes()[entry.start : entry.stop]
        assert torch.equal(dequantize(entry.kind, blocks), file.load(name))
        blocks.zero_()
        assert file.blocks(name).any()
        found += 1
    assert found


def test_a_file_cut_short_after_opening(tmp_path: Path) -> None:
    file = opened(tmp_path, SMALL)
    os.truncate(file.path, 100)
    with pytest.raises(FormatError) as caught:
        file.load("w")
    assert caught.value.code == "truncated"
    path = tmp_path / "blocks.gguf"
    path.write_bytes((Path(__file__).parents[1] / "golden" / "gguf_file.gguf").read_bytes())
    file = gguf.read(path)
    name = next(n for n, e in file.tensors.items() if e.kind in BLOCKS and len(e.shape) == 2)
    os.truncate(path, 100)
    with pytest.raises(FormatError, match="cut short"):
        file.blocks(name)


@pytest.mark.parametrize("kind", ["missing", "folder", "NUL"])
def test_what_is_no_file(kind: str, tmp_path: Path) -> None:
    path = {"missing": tmp_path / "x", "folder": tmp_path, "NUL": tmp_path / "a\0b"}[kind]
    with pytest.raises(FormatError) as caught:
        gguf.read(path)
    assert caught.value.code == "bad-path"


@pytest.mark.assets
def test_the_real_one(asset: Callable[[str], Path]) -> None:
    """Numbers from the table of published assets, and from gguf.GGUFReader on the same file."""
    file = gguf.read(asset("smollm2-135m-instruct"))
    kinds = [entry.kind for entry in file.tensors.values()]
    assert (file.version, len(kinds)) == (3, 272)
    assert [kinds.count(kind) for kind in ("Q4_1", "F32", "Q8_0")] == [210, 61, 1]
    assert file.metadata["general.architecture"] == "llama"
    tokens = file.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    assert len(tokens) == 49_152
    assert file.tensors["token_embd.weight"].shape == (49_152, 576)


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""
    return {name: (partial(opened, data=data), code) for name, (data, code) in BAD.items()}
