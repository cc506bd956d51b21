"""GGUF files, version 2 and 3: metadata, tensor descriptions and tensor bytes in one file.

    "GGUF"  u32 version  u64 tensors  u64 pairs
    pairs   key, u32 type, value                          a text is: u64 length, UTF-8 bytes
    tensors name, u32 rank, u64 dims[rank], u32 kind, u64 offset         (innermost dim first)
    zeros up to a multiple of the alignment, then the tensors in this order, each padded likewise

Offsets count from the first tensor. Layout source: docs/gguf.md of the ggml project. As llama.cpp
does, the reader wants every tensor exactly where the one before it ends. Besides it refuses: double
keys, nested arrays, names that are paths, padding that is not zero, and counts beyond the limits.

A kind that minift cannot load, such as IQ2_XXS, is refused by `read`, with the tensor's name: a
model with one tensor missing is of no use, and the sooner it is said the better.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minift.errors import FormatError, one_line
from minift.formats import placeholder
from minift.formats.safetensors import name_problem
from minift.kernels.quantized.reference import BLOCKS, dequantize, fresh
from minift.storage import map_file

HEADER_LIMIT = 100_000_000
TENSOR_LIMIT = 100_000
RANK_LIMIT = 4  # the format's own
TEXT_LIMIT = 16 << 20
ALIGNMENT, ALIGNMENT_LIMIT = 32, 1 << 20
MARK = {"minift.writer": "minift"}  # metadata of the files that minift writes, and so may replace

U32, BOOL, TEXT, ARRAY = 4, 7, 8, 9
SCALARS = {  # type number: struct format, which is also numpy's
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", U32: "<u4", 5: "<i4",
    6: "<f4", BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip

PLAIN = {  # kinds without blocks
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}
SIZES = {kind: (1, dtype.itemsize) for kind, dtype in PLAIN.items()} | BLOCKS
NUMBERS = {  # ggml.h, enum ggml_type; the gaps are kinds that were removed
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1",
    10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
    17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
    23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16",
    34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0",
}  # fmt: skip

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor, its shape in torch's order; its bytes are `start` to `stop` of the file."""

    kind: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class GgufFile:
    """What `read` found. The file is mapped: a tensor costs nothing until it is loaded."""

    path: Path
    version: int
    metadata: dict[str, object]  # arrays are lists
    tensors: dict[str, Entry]
    _map: mmap.mmap | bytes = field(repr=False)

    def load(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor's values in memory of their own, as `dtype`; integer kinds stay as they are.

        Blocks are made into float32 first, then rounded if `dtype` is narrower.
        """
        entry = self.tensors[name]
        self._check_whole()
        plain = PLAIN.get(entry.kind)
        if entry.start == entry.stop:
            keep = plain is not None and not plain.is_floating_point
            return torch.empty(entry.shape, dtype=plain if keep else dtype)
        size = entry.stop - entry.start
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=size, offset=entry.start)
        if plain is None:
            values = dequantize(entry.kind, raw, dtype)
        elif plain.is_floating_point:
            values = fresh((math.prod(entry.shape),), dtype).copy_(raw.view(plain))
        else:
            values = raw.view(plain).clone()
        self._forget(entry)
        return values.reshape(entry.shape)

    def blocks(self, name: str) -> Tensor:
        """A matrix of blocks as it is stored, in memory of its own: uint8 (rows, bytes)."""
        entry = self.tensors[name]
        assert entry.kind in BLOCKS
        assert len(entry.shape) == 2
        self._check_whole()
        if entry.start == entry.stop:
            return torch.empty((entry.shape[0], 0), dtype=torch.uint8)
        size = entry.stop - entry.start
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=size, offset=entry.start).clone()
        self._forget(entry)
        return raw.reshape(entry.shape[0], -1)

    def _check_whole(self) -> None:
        """Touching a page that the file no longer has would end the process."""
        if isinstance(self._map, mmap.mmap) and self._map.size() < len(self._map):
            found, allowed = "cut short since it was opened", f"{len(self._map):,} bytes"
            raise FormatError(self.path, "file", found, allowed, "truncated")

    def _forget(self, entry: Entry) -> None:
        """Give back the memory of a tensor's raw bytes: nothing refers to them any more."""
        if isinstance(self._map, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            start = entry.start - entry.start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, entry.stop - start)


def read(path: str | os.PathLike[str]) -> GgufFile:
    """Open a file and check its whole header. Raises FormatError, and nothing else."""
    cursor = _Cursor(path, map_file(path))
    placeholder.check(path, cursor.data, empty="truncated")
    magic = cursor.take(4, "magic")
    if magic != b"GGUF":
        raise FormatError(path, "magic", magic, "GGUF", "bad-magic")
    version = cursor.u32("version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "big"), "little") in (1, 2, 3)
        found = f"{version}{' (a big-endian file)' if swapped else ''}"
        raise FormatError(path, "version", found, "2 or 3", "bad-version")
    tensor_count, pair_count = cursor.u64("tensor count"), cursor.u64("metadata count")
    if tensor_count > TENSOR_LIMIT:
        raise FormatError(path, "tensor count", tensor_count, f"{TENSOR_LIMIT:,}", "limit")
    cursor.check_room(tensor_count, 25, "tensor count")  # a name of one byte, no dims
    cursor.check_room(pair_count, 14, "metadata count")  # a key of one byte, one byte
    metadata: dict[str, object] = {}
    for _ in range(pair_count):
        key = cursor.name("metadata key")
        if key in metadata:
            raise FormatError(path, "metadata", f"key {key!r} twice", "each key once", "dup-key")
        kind = cursor.u32(key)
        if key == "general.alignment" and kind != U32:
            raise FormatError(path, key, f"type {kind}", f"type {U32}, uint32", "bad-type")
        metadata[key] = cursor.value(kind, key)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    assert isinstance(alignment, int)
    if not 8 <= alignment <= ALIGNMENT_LIMIT or alignment & (alignment - 1):
        allowed = f"a power of two from 8 to {ALIGNMENT_LIMIT:,}"
        raise FormatError(path, "general.alignment", alignment, allowed, "out-of-range")
    tensors = _tensors(cursor, tensor_count, alignment)
    return GgufFile(Path(path), version, metadata, tensors, cursor.data)


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, Entry]:
    """The tensor descriptions, each checked to begin where the one before it ends."""

    def aligned(position: int) -> int:
        return -(-position // alignment) * alignment

    described: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    for _ in range(count):
        name = cursor.name("tensor name")
        where = f'tensor "{name}"'
        if name in described:
            raise FormatError(cursor.path, "tensors", f"{name!r} twice", "each once", "dup-key")
        described[name] = (*_shape(cursor, where), cursor.u64(f"{where} offset"))
    gaps = [(cursor.at, aligned(cursor.at))]
    start = at = aligned(cursor.at) if count else cursor.at
    tensors = {}
    for name, (kind, shape, size, offset) in described.items():
        expected = aligned(at) - start
        if offset != expected:
            code = "overlap" if offset < expected else "hole"
            code = "out-of-range" if offset % alignment else code
            where = f'tensor "{name}" offset'
            raise FormatError(cursor.path, where, f"{offset:,}", f"{expected:,}", code)
        at = start + offset + size
        if at > len(cursor.data):
            left = max(0, len(cursor.data) - start - offset)
            found, allowed = f"{left:,} bytes left in the file", f"its {size:,} {placeholder.CUT}"
            raise FormatError(cursor.path, f'tensor "{name}"', found, allowed, "truncated")
        tensors[name] = Entry(kind, shape, start + offset, at)
        gaps.append((at, aligned(at)))
    for begin, end in gaps:
        if cursor.data[begin:end].strip(b"\0"):
            code = "trailing" if end == gaps[-1][1] else "hole"
            raise FormatError(cursor.path, "padding", "data", "zeros", code)
    if len(cursor.data) > gaps[-1][1]:
        found = f"{len(cursor.data) - gaps[-1][1]:,} bytes after the last tensor"
        raise FormatError(cursor.path, "file", found, "none", "trailing")
    return tensors


def _shape(cursor: _Cursor, where: str) -> tuple[str, tuple[int, ...], int]:
    """(kind, shape in torch's order, bytes) of the tensor described at the cursor."""
    rank = cursor.u32(f"{where} rank")
    if rank > RANK_LIMIT:
        raise FormatError(cursor.path, f"{where} rank", rank, f"at most {RANK_LIMIT}", "limit")
    shape = tuple(cursor.u64(f"{where} shape") for _ in range(rank))[::-1]
    number = cursor.u32(f"{where} kind")
    kind = NUMBERS.get(number, f"{number}, which is no kind")
    if kind not in SIZES:
        allowed = ", ".join(SIZES)
        raise FormatError(cursor.path, f"{where} kind", kind, allowed, "bad-dtype")
    weights, size = SIZES[kind]
    # Zeros count as one: torch multiplies the other dimensions for the strides.
    if math.prod(max(d, 1) for d in shape) * 8 >= 1 << 63:
        raise FormatError(cursor.path, f"{where} shape", shape, "a size below 2^63", "overflow")
    if (shape[-1] if shape else 1) % weights:
        found, allowed = f"rows of {shape[-1] if shape else 1:,}", f"a multiple of {weights}"
        raise FormatError(cursor.path, f"{where} shape", found, allowed, "shape-mismatch")
    return kind, shape, math.prod(shape) // weights * size


class _Cursor:
    """A position in the header; nothing is taken that is not there."""

    def __init__(self, path: str | os.PathLike[str], data: mmap.mmap | bytes):
        self.path, self.data, self.at = path, data, 0
        self.end = min(len(data), HEADER_LIMIT)

    def check_room(self, count: int, size: int, where: str) -> None:
        """Refuse `count` items of at least `size` bytes where the file has no room for them."""
        if count * size > self.end - self.at:
            code = "truncated" if self.end == len(self.data) else "too-large"
            allowed = f"what fits the {self.end - self.at:,} bytes left"
            raise FormatError(self.path, where, f"{count:,} of {size} bytes", allowed, code)

    def take(self, size: int, where: str) -> bytes:
        self.check_room(1, size, where)
        self.at += size
        return self.data[self.at - size : self.at]

    def u32(self, where: str) -> int:
        return int(_U32.unpack(self.take(4, where))[0])

    def u64(self, where: str) -> int:
        return int(_U64.unpack(self.take(8, where))[0])

    def name(self, where: str) -> str:
        (name,) = self.texts(1, where)
        if problem := name_problem(name):
            found = f"{one_line(name, 40)!r}, {problem}"
            raise FormatError(self.path, where, found, "a plain name of 1 to 512 bytes", "unsafe")
        return name

    def value(self, kind: int, where: str) -> object:
        if kind == TEXT:
            return self.texts(1, where)[0]
        if kind != ARRAY:
            return self.numbers(kind, 1, where)[0]
        kind, count = self.u32(where), self.u64(where)
        if kind == ARRAY:
            raise FormatError(self.path, where, "an array of arrays", "a flat array", "bad-type")
        return self.texts(count, where) if kind == TEXT else self.numbers(kind, count, where)

    def numbers(self, kind: int, count: int, where: str) -> list[int] | list[float] | list[bool]:
        if kind not in SCALARS:
            raise FormatError(self.path, where, f"type {kind}", "type 0 to 12", "bad-type")
        dtype = np.dtype(SCALARS[kind])
        self.check_room(count, dtype.itemsize, where)
        values = np.frombuffer(self.take(count * dtype.itemsize, where), dtype)
        if kind == BOOL:
            if values.max(initial=0) > 1:
                raise FormatError(self.path, where, int(values.max()), "0 or 1", "out-of-range")
            values = values.astype(bool)
        result: list[int] | list[float] | list[bool] = values.tolist()
        return result

    def texts(self, count: int, where: str) -> list[str]:
        """The vocabulary comes through here: one straight loop over local names."""
        self.check_room(count, 8, where)
        data, at, end = self.data, self.at, self.end
        length_at: Callable[..., tuple[int]] = _U64.unpack_from
        texts = []
        try:
            for _ in range(count):
                begin = at + 8
                if begin > end:
                    self.at = at
                    self.check_room(1, 8, where)
                at = begin + length_at(data, at)[0]
                if at > end or at - begin > TEXT_LIMIT:
                    self.at = begin
                    self.check_room(1, at - begin, where)
                    found = f"{at - begin:,} bytes"
                    raise FormatError(self.path, where, found, f"{TEXT_LIMIT:,}", "limit")
                texts.append(data[begin:at].decode())
        except UnicodeDecodeError as error:
            raise FormatError(self.path, where, error.object[:20], "UTF-8", "bad-utf8") from None
        self.at = at
        return texts
