"""safetensors files: a JSON header that says where each tensor's bytes are, then the bytes.

    8 bytes    length of the header, little-endian
    header     {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
                "__metadata__": {"text": "text"}}
    data       the tensors, row-major, little-endian, without gaps; offsets count from here

The reader takes what the reference implementation takes, and refuses besides: duplicate keys,
unknown fields, names that are paths, booleans that are neither 0 nor 1, and counts beyond the
limits below.
The writer gives the same bytes for the same tensors, in the order of the reference implementation
(widest dtype first, then by name), so every tensor lies at a multiple of its item size.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minift.errors import ConfigError, FormatError, one_line
from minift.formats import placeholder, strict_json
from minift.storage import free_space, map_file, write_file

HEADER_LIMIT = 100_000_000
TENSOR_LIMIT = 100_000
RANK_LIMIT = 8
NAME_LIMIT = 512  # bytes
TEXT_LIMIT = 16 << 20  # bytes of a metadata value
METADATA = "__metadata__"
MARK = {"writer": "minift"}  # metadata of the files that minift writes, and so may replace
FIELDS = ("dtype", "shape", "data_offsets")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

DTYPES = {  # in the order that the writer puts them in
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file; its bytes are `start` to `stop`, counted from the file's beginning."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def kind(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class SafetensorsFile:
    """What `read` found. The file is mapped: a tensor costs nothing until it is loaded."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, Entry]
    _map: mmap.mmap | bytes = field(repr=False)

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def load(self, name: str) -> Tensor:
        """The tensor, on memory of this process alone: writing to it never changes the file.

        Where possible that is the mapped file itself, copied page by page when written to. So the
        same tensor loaded twice shares memory, and another program must not change the file in
        place meanwhile (minift never does).
        """
        entry = self.tensors[name]
        size = len(self._map)
        if isinstance(self._map, mmap.mmap) and self._map.size() < size:
            found, allowed = "cut short since it was opened", f"{size:,} bytes"
            raise FormatError(self.path, "file", found, allowed, "truncated")
        if entry.start == entry.stop:
            return torch.empty(entry.shape, dtype=entry.dtype)
        size = entry.stop - entry.start
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=size, offset=entry.start)
        if entry.dtype == torch.bool:
            if bool((raw > 1).any()):
                found = f"byte {int(raw.max())}"
                raise FormatError(self.path, f'tensor "{name}"', found, "0 or 1", "out-of-range")
            return (raw == 1).reshape(entry.shape)
        if entry.start % entry.dtype.itemsize:  # legal, and no torch operation expects it
            return raw.clone().view(entry.dtype).reshape(entry.shape)
        return raw.view(entry.dtype).reshape(entry.shape)


def read(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open a file and check its whole header. Raises FormatError, and nothing else."""
    data = map_file(path)
    placeholder.check(path, data, empty="truncated")
    if len(data) < 8:
        raise FormatError(path, "file", f"{len(data)} bytes", "at least 8", "truncated")
    length = int.from_bytes(data[:8], "little")
    if length > HEADER_LIMIT:
        allowed = f"at most {HEADER_LIMIT:,}"
        raise FormatError(path, "header length", f"{length:,} bytes", allowed, "too-large")
    if length > len(data) - 8:
        allowed = f"at most the {len(data) - 8:,} left in the file {placeholder.CUT}"
        raise FormatError(path, "header length", f"{length:,} bytes", allowed, "truncated")
    header = strict_json.parse(data[8 : 8 + length], path, "header", limit_bytes=HEADER_LIMIT)
    if type(header) is not dict:
        raise FormatError(path, "header", type(header).__name__, "an object", "bad-type")
    metadata = _metadata(path, header.pop(METADATA, {}))
    if len(header) > TENSOR_LIMIT:
        raise FormatError(path, "header", f"{len(header):,} tensors", f"{TENSOR_LIMIT:,}", "limit")
    tensors = {name: _entry(path, name, value, 8 + length) for name, value in header.items()}
    _check_coverage(path, tensors, 8 + length, len(data))
    return SafetensorsFile(Path(path), metadata, tensors, data)


def _metadata(path: str | os.PathLike[str], value: Any) -> dict[str, str]:
    if type(value) is not dict:
        raise FormatError(path, METADATA, value, "an object of texts", "bad-type")
    for key, text in value.items():
        where = f"{METADATA}[{one_line(key)!r}]"
        if type(text) is not str:
            raise FormatError(path, where, text, "a text", "bad-type")
        if len(text.encode()) > TEXT_LIMIT:
            raise FormatError(path, where, f"{len(text):,} characters", "16 MiB", "limit")
    return value


def _entry(path: str | os.PathLike[str], name: str, value: Any, data_start: int) -> Entry:
    def refuse(what: str, found: object, allowed: str, code: str) -> FormatError:
        return FormatError(path, f'tensor "{one_line(name)}"{what}', found, allowed, code)

    if problem := name_problem(name):
        raise refuse("", problem, f"a plain name of 1 to {NAME_LIMIT} bytes", "unsafe")
    if type(value) is not dict:
        raise refuse("", value, "an object", "bad-type")
    for key in FIELDS:
        if key not in value:
            raise refuse("", f"no {key}", f"an entry with {key}", "missing-field")
    if len(value) > len(FIELDS):
        key = next(key for key in value if key not in FIELDS)
        raise refuse("", key, ", ".join(FIELDS), "unknown-field")
    dtype = DTYPES.get(value["dtype"]) if type(value["dtype"]) is str else None
    if dtype is None:
        raise refuse(" dtype", value["dtype"], ", ".join(DTYPES), "bad-dtype")
    shape, offsets = value["shape"], value["data_offsets"]
    for key in ("shape", "data_offsets"):
        numbers = value[key]
        if type(numbers) is not list or not set(map(type, numbers)) <= {int}:  # True is no int here
            raise refuse(f" {key}", numbers, "a list of whole numbers", "bad-type")
        if min(numbers, default=0) < 0 or max(numbers, default=0) >= 1 << 64:
            raise refuse(f" {key}", numbers, "numbers from 0 to 2^64 - 1", "out-of-range")
    if len(shape) > RANK_LIMIT:
        raise refuse(" shape", f"{len(shape)} dimensions", f"at most {RANK_LIMIT}", "limit")
    # Zeros count as one: torch multiplies the other dimensions for the strides.
    if math.prod(d or 1 for d in shape) * dtype.itemsize >= 1 << 63:
        raise refuse(" shape", shape, "a size below 2^63", "overflow")
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(" data_offsets", offsets, "[begin, end] with begin <= end", "out-of-range")
    begin, end = offsets
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        allowed = f"{needed:,} for {value['dtype']} {shape}"
        raise refuse(" data_offsets", f"{end - begin:,} bytes", allowed, "shape-mismatch")
    return Entry(dtype, tuple(shape), data_start + begin, data_start + end)


def _check_coverage(
    path: str | os.PathLike[str], tensors: Mapping[str, Entry], start: int, stop: int
) -> None:
    """Every byte of the data belongs to one tensor."""
    at = start
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != at:
            code = "overlap" if entry.start < at else "hole"
            found, allowed = f"begins at {entry.start - start:,}", f"{at - start:,}"
            raise FormatError(path, f'tensor "{one_line(name)}"', found, allowed, code)
        at = entry.stop
    if at != stop:
        code = "truncated" if at > stop else "trailing"
        cut = f" {placeholder.CUT}" if at > stop else ""
        found, allowed = f"{stop - start:,} bytes", f"the {at - start:,} of its tensors{cut}"
        raise FormatError(path, "data", found, allowed, code)


def name_problem(name: str) -> str | None:
    """What is wrong with a tensor's name, if anything: names must never work as paths."""
    if not 1 <= len(name.encode()) <= NAME_LIMIT:
        return f"{len(name.encode()):,} bytes"
    if "/" in name or "\\" in name or name in (".", ".."):
        return "a path"
    if CONTROL.search(name):
        return "a control character"
    return None


def encode(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Iterator[bytes | memoryview]:
    """The file as chunks, for `storage`; checked and laid out now, copied from the tensors later.

    Raises ConfigError for what no reader would take. Tensors that share memory are written twice.
    """
    order = list(DTYPES)
    for name, tensor in tensors.items():
        problem = name_problem(name)
        if problem is None and (tensor.dtype not in NAMES or tensor.layout != torch.strided):
            problem = f"{tensor.dtype}, {tensor.layout}"
        if problem is None and (tensor.is_meta or tensor.is_quantized):
            problem = "no plain values"
        if problem is None and (tensor.dim() > RANK_LIMIT or name == METADATA):
            problem = f"{tensor.dim()} dimensions"
        if problem:
            raise ConfigError(f'safetensors: tensor "{one_line(name)}": {problem}: not written')
    names = sorted(tensors, key=lambda name: (order.index(NAMES[tensors[name].dtype]), name))
    header: dict[str, Any] = {}
    if metadata:
        if not all(type(x) is str for pair in metadata.items() for x in pair):
            raise ConfigError("safetensors: metadata must be texts")
        header[METADATA] = dict(sorted(metadata.items()))
    at = 0
    for name in names:
        tensor = tensors[name]
        end = at + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_LIMIT or len(tensors) > TENSOR_LIMIT:
        raise ConfigError(f"safetensors: {len(tensors):,} tensors are too many for one file")

    def chunks() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name in names:
            flat = tensors[name].detach().cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data

    return chunks()


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file, whole or not at all. The same tensors and metadata give the same bytes.

    Whoever calls has looked at what is there (overwrite.py).
    """
    chunks = encode(tensors, metadata)
    free_space(path, sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values()))
    write_file(path, chunks)
