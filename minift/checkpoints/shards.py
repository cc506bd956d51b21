"""The weights of a folder: one file, or several with an index that says what is where.

    model.safetensors, else model.safetensors.index.json,
    else pytorch_model.bin, else pytorch_model.bin.index.json

The index and the shards must say the same: each tensor in the one shard that the index names,
nothing more in any of them; a shard's links may not leave the folder, or in the Hugging Face cache
the model's part of it. `total_size` may count as any of the programs that write it has counted:
each tensor, each storage once, or eight booleans a byte.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from minift.checkpoints.hub.cache import check_inside, link_root
from minift.errors import FormatError, one_line
from minift.formats import safetensors, torch_zip, weight_index

SHOWN = 20  # problems in one message
UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2", ".tmp")  # what downloads are called
NAMES = (
    "model.safetensors",
    "model.safetensors" + weight_index.END,
    "pytorch_model.bin",
    "pytorch_model.bin" + weight_index.END,
)
ENDS = (".safetensors", ".bin", *(name for name in NAMES if name.endswith(weight_index.END)))


class Entry(Protocol):
    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def kind(self) -> str: ...


class WeightFile(Protocol):
    """What a file of weights offers, whatever its format."""

    @property
    def path(self) -> Path: ...

    @property
    def tensors(self) -> Mapping[str, Entry]: ...

    @property
    def files(self) -> list[Path]: ...

    def load(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class ShardedFile:
    """What `read` found: all shards as if they were one file. `path` is the index's."""

    path: Path
    tensors: dict[str, Entry]
    files: list[Path]  # the shards, in order of their names
    _homes: dict[str, WeightFile] = field(repr=False)  # the shard of each tensor

    def load(self, name: str) -> Tensor:
        """The tensor, as its shard's own `load` gives it."""
        return self._homes[name].load(name)


def weights_of(folder: str | os.PathLike[str]) -> tuple[WeightFile, list[str]]:
    """The opened weights of a folder, and the names of those passed over for them."""
    folder = Path(folder)
    # A link to nothing counts: to take the next format silently would hide a broken download.
    here = [name for name in NAMES if os.path.lexists(folder / name)]
    if not here:
        try:
            files = sorted(os.listdir(folder))
            held = ", ".join(files[:SHOWN]) or "an empty folder"
            if cut := next((name for name in files if name.endswith(UNFINISHED)), None):
                held = f"{cut}, a download that was not finished"
        except OSError as error:
            held = os.strerror(error.errno or 0)
        raise FormatError(folder, "weights", held, " or ".join(NAMES), "missing-field")
    return open_file(folder / here[0]), here[1:]


def open_file(path: str | os.PathLike[str]) -> WeightFile:
    """A weight file of any of the four kinds, by the end of its name."""
    name = os.fspath(path)
    if name.endswith(weight_index.END):
        return read(path)
    return safetensors.read(path) if name.endswith(".safetensors") else torch_zip.read(path)


def read(path: str | os.PathLike[str]) -> ShardedFile:
    """Open an index and the headers of its shards. Raises FormatError, and nothing else."""
    index = weight_index.read(path)
    root = link_root(index.path.parent)
    for name in index.files:  # all of them before the first is opened
        check_inside(index.path.parent / name, root)
    tensors: dict[str, Entry] = {}
    homes: dict[str, WeightFile] = {}
    problems: list[tuple[str, str]] = []
    for name in index.files:
        shard = open_file(index.path.parent / name)
        for key, entry in shard.tensors.items():
            if key in homes:
                shards = f"{homes[key].path.name} and {name}"
                problems.append(("dup-key", f"{one_line(key)} is in {shards}"))
            elif key not in index.homes:
                problems.append(("unknown-field", f"{one_line(key)} in {name} is not listed"))
            homes[key], tensors[key] = shard, entry
    for key, name in index.homes.items():
        if key not in homes:
            problems.append(("missing-field", f"{one_line(key)} is not in {name}"))
        elif homes[key].path.name != name:
            where = f"{one_line(key)} is in {homes[key].path.name}, not in {name}"
            problems.append(("missing-field", where))
    if problems:
        lines = [line for _, line in problems[:SHOWN]]
        found = f"{len(problems):,} tensors elsewhere than listed"
        allowed = "exactly those of the index"
        raise FormatError(index.path, "weight_map", found, allowed, problems[0][0], lines)
    if index.total is not None:
        _check_total(index.path, index.total, tensors, homes)
    ordered = {key: tensors[key] for key in index.homes}
    files = [index.path.parent / name for name in index.files]
    return ShardedFile(index.path, ordered, files, homes)


def _check_total(
    path: Path,
    total: int | float,
    tensors: Mapping[str, Entry],
    homes: Mapping[str, WeightFile],
) -> None:
    """Compare with the three ways of counting that are in use."""
    sizes = {key: math.prod(e.shape) * e.dtype.itemsize for key, e in tensors.items()}
    everything = sum(sizes.values())
    flags = sum(sizes[key] for key, entry in tensors.items() if entry.dtype == torch.bool)
    counts: set[int | float] = {everything, everything - flags + flags / 8}
    once: dict[object, int] = {}
    for key, entry in tensors.items():
        once.setdefault((homes[key].path, getattr(entry, "storage", key)), sizes[key])
    counts.add(sum(once.values()))
    if total not in counts:
        found, allowed = f"{total:,}", f"the tensors' {everything:,} bytes"
        raise FormatError(path, "total_size", found, allowed, "shape-mismatch")
