"""A GGUF model in one file, or in several that its keys and names say belong together.

    NAME-00001-of-00003.gguf    split.no 0, split.count 3, split.tensors.count, all other metadata
    NAME-00002-of-00003.gguf    split.no 1, split.count 3, split.tensors.count

Any of them opens the whole. Names and keys must say the same, every part must be there, and the
parts hold as many tensors as they say, each once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from minift.errors import FormatError
from minift.formats import gguf
from minift.formats.gguf import Entry, GgufFile

PART = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf", re.DOTALL)
MOST_PARTS = 1000
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"


@dataclass(frozen=True)
class SplitFile:
    """All parts as if they were one file. `path` is that of the first."""

    path: Path
    metadata: dict[str, object]
    tensors: dict[str, Entry]
    files: list[Path]
    _homes: dict[str, GgufFile] = field(repr=False)  # the part of each tensor

    def load(self, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._homes[name].load(name, dtype)

    def blocks(self, name: str) -> Tensor:
        return self._homes[name].blocks(name)


def read(path: str | os.PathLike[str]) -> GgufFile | SplitFile:
    """Open a file, and the others of its model. Raises FormatError, and nothing else."""
    path = Path(path)
    file = gguf.read(path)
    count = _key(file, COUNT, 1)
    if count <= 1:
        return file
    if count > MOST_PARTS:
        raise FormatError(path, COUNT, f"{count:,}", f"at most {MOST_PARTS:,}", "limit")
    match = PART.fullmatch(path.name)
    if match is None or int(match[3]) != count or int(match[2]) != _key(file, NUMBER, -1) + 1:
        number = _key(file, NUMBER, -1) + 1
        allowed = f"a name that ends in -{number:05}-of-{count:05}.gguf, as its keys say"
        raise FormatError(path, "file name", path.name, allowed, "bad-path")
    names = [f"{match[1]}-{n:05}-of-{match[3]}.gguf" for n in range(1, count + 1)]
    files = [path.with_name(name) for name in names]
    for other in files:
        if not os.path.exists(other):
            allowed = f"all {count} parts beside each other"
            raise FormatError(path, COUNT, f"no {other.name}", allowed, "missing-field")
    parts = [file if other == path else gguf.read(other) for other in files]
    tensors: dict[str, Entry] = {}
    homes: dict[str, GgufFile] = {}
    for n, part in enumerate(parts):
        for key, wanted in ((NUMBER, n), (COUNT, count), (TENSORS, _key(file, TENSORS, -1))):
            if (found := _key(part, key, -1)) != wanted:
                allowed = f"{wanted}, as its name and the other parts say"
                raise FormatError(part.path, key, found, allowed, "shape-mismatch")
        for name, entry in part.tensors.items():
            if name in homes:
                found_in = f"{homes[name].path.name} and {part.path.name}"
                where = f'tensor "{name}"'
                raise FormatError(path, where, f"it in {found_in}", "each once", "dup-key")
            homes[name], tensors[name] = part, entry
    if len(tensors) != _key(file, TENSORS, -1):
        found, allowed = _key(file, TENSORS, -1), f"{len(tensors):,}, the tensors of all parts"
        raise FormatError(path, TENSORS, f"{found:,}", allowed, "shape-mismatch")
    return SplitFile(files[0], parts[0].metadata, tensors, files, homes)


def _key(file: GgufFile, key: str, usual: int) -> int:
    value = file.metadata.get(key, usual)
    if type(value) is not int:
        raise FormatError(file.path, key, value, "a whole number", "bad-type")
    return value


def models_in(folder: Path) -> list[Path]:
    """The .gguf files of a folder; of the parts of one model, the first."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.gguf")):
        match = PART.fullmatch(path.name)
        found.setdefault(f"{match[1]} of {match[3]}" if match else path.name + " alone", path)
    return list(found.values())
