"""GGUF files written, version 3: the layout that gguf.py reads.

A metadata value's type decides how it is stored: bool, whole number (uint32, or int32 below zero),
float (float32), text, or a list of one of these (whole numbers as int32, as llama.cpp reads them).

A tensor is stored as F32, F16, BF16, Q8_0, Q4_0 or Q4_1. The last three cut rows into blocks of 32:
a tensor of one dimension, or whose rows are no multiple of 32, is not for them (`stored_as`). The
same metadata and tensors give the same bytes.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from minift.errors import ConfigError, one_line
from minift.formats.gguf import (
    ALIGNMENT,
    ARRAY,
    BOOL,
    HEADER_LIMIT,
    MARK,
    NUMBERS,
    PLAIN,
    RANK_LIMIT,
    SIZES,
    TENSOR_LIMIT,
    TEXT,
    TEXT_LIMIT,
    U32,
)
from minift.formats.overwrite import check_file
from minift.formats.safetensors import name_problem
from minift.kernels.quantized.quantize import PACK, quantize
from minift.kernels.quantized.reference import BLOCKS
from minift.model.finite import check_finite, is_finite
from minift.storage import Check, free_space, write_file

I32, F32 = 5, 6
KINDS = ("F32", "F16", "BF16", *PACK)
NUMBER_OF = {kind: number for number, kind in NUMBERS.items()}
PIECE = 8 << 20  # weights converted at a time

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]


def stored_as(kind: str, shape: tuple[int, ...]) -> str:
    """`kind`, or F32 for a vector (norms and biases), or F16 where rows do not fill its blocks."""
    if kind not in KINDS:
        raise ConfigError(f'dtype: found "{kind}", allowed {", ".join(KINDS)}')
    if len(shape) < 2:
        return "F32"
    return "F16" if kind in BLOCKS and shape[-1] % BLOCKS[kind][0] else kind


def encode(
    metadata: Mapping[str, Value], tensors: Mapping[str, Tensor], kinds: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The file as chunks, for `storage`; checked and laid out now, tensors converted later.

    Raises ConfigError for what no reader would take; a weight that its kind cannot hold is found
    while the chunks are made.
    """
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        if name_problem(key):
            raise ConfigError(f"gguf: metadata key {one_line(key)!r}: not a plain name")
        head += [_text(key), _pair(key, value)]
    at = 0
    for name, tensor in tensors.items():
        problem = name_problem(name)
        if problem is None and not (tensor.is_floating_point() and tensor.dim() <= RANK_LIMIT):
            problem = f"{tensor.dtype}, {tensor.dim()} dimensions"
        if problem:
            raise ConfigError(f'gguf: tensor "{one_line(name)}": {problem}: not written')
        dims = tuple(reversed(tensor.shape))
        head.append(_text(name) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
        head.append(struct.pack("<IQ", NUMBER_OF[kinds[name]], at))
        at += _aligned(size_of(kinds[name], tuple(tensor.shape)))
    header = b"".join(head)
    header += bytes(_aligned(len(header)) - len(header))
    if len(header) > HEADER_LIMIT or len(tensors) > TENSOR_LIMIT:
        raise ConfigError(f"gguf: {len(header):,} bytes of metadata are too many for one file")

    def chunks() -> Iterator[bytes | memoryview]:
        yield header
        for name, tensor in tensors.items():
            size = 0
            for piece in pieces(name, tensor, kinds[name]):
                yield piece.numpy().data
                size += len(piece)
            yield bytes(_aligned(size) - size)

    return chunks()


def write(
    path: str | os.PathLike[str],
    metadata: Mapping[str, Value],
    tensors: Mapping[str, Tensor],
    kinds: Mapping[str, str],
    *,
    overwrite: bool = False,
    then: Check | None = None,
) -> None:
    """Write a file, whole and let through by `then`, or not at all.

    One that is there is replaced only with `overwrite`, and only if minift wrote it.
    """

    def free(written: str) -> None:
        if then is not None:
            then(written)
        check_file(path, overwrite)  # again: a file may have come meanwhile

    check_file(path, overwrite)
    chunks = encode(dict(metadata) | MARK, tensors, kinds)
    free_space(path, sum(size_of(kinds[name], tuple(t.shape)) for name, t in tensors.items()))
    write_file(path, chunks, then=free)


def size_of(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor, without its padding."""
    weights, size = SIZES[kind]
    return math.prod(shape) // weights * size


def pieces(name: str, tensor: Tensor, kind: str) -> Iterator[Tensor]:
    """The tensor's bytes, a few megabytes at a time; refuses weights that are lost in this kind."""
    for part in tensor.detach().reshape(-1).split(PIECE):  # PIECE is a multiple of every block
        wide = part.cpu().float()
        check_finite("gguf", [(name, wide)])
        try:
            if kind in PLAIN:
                stored = wide.to(PLAIN[kind])
                if not is_finite(stored):
                    raise OverflowError(f"a weight beyond {kind}")
                yield stored.contiguous().view(torch.uint8)
            else:
                yield quantize(kind, wide)
        except OverflowError as error:
            raise ConfigError(f'gguf: tensor "{name}" has {error}: choose BF16 or F32') from None


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, value: object) -> bytes:
    """The type and the value of one metadata key."""
    if isinstance(value, list):
        kind, form = _type(key, value[0]) if value else (TEXT, "")  # of no items, any type is right
        if kind == U32:
            kind, form = I32, "i"
        if any(type(item) is not type(value[0]) for item in value):
            raise ConfigError(f"gguf: metadata {key}: a list of several types")
        items = [_scalar(key, kind, form, item) for item in value]
        return struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(items)
    kind, form = _type(key, value)
    return struct.pack("<I", kind) + _scalar(key, kind, form, value)


def _type(key: str, value: object) -> tuple[int, str]:
    """The number of the type that stores a value, and its letter for `struct`."""
    match value:
        case bool():
            return BOOL, "?"
        case int():
            return (U32, "I") if value >= 0 else (I32, "i")
        case float():
            return F32, "f"
        case str():
            return TEXT, ""
    raise ConfigError(f"gguf: metadata {key}: {type(value).__name__} has no place in the format")


def _scalar(key: str, kind: int, form: str, value: object) -> bytes:
    try:
        if kind != TEXT:
            return struct.pack("<" + form, value)
        assert isinstance(value, str)
        data = _text(value)
    except (struct.error, OverflowError, UnicodeEncodeError):
        raise ConfigError(f"gguf: metadata {key}: {one_line(value)} cannot be stored") from None
    if len(data) > TEXT_LIMIT:
        raise ConfigError(f"gguf: metadata {key}: {len(data):,} bytes, allowed {TEXT_LIMIT:,}")
    return data
