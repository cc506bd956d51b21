"""PyTorch's `.bin` and `.pt` files: a zip of one description and one member for each storage.

    NAME/data.pkl     a pickled dict of tensors: dtype, shape, strides, and which storage
    NAME/byteorder    "little"; older files have none
    NAME/data/0 ...   the storages, stored plainly, so that they can be mapped
    NAME/version      "3"
    NAME/.*           torch's notes to itself

Layout source: torch/serialization.py and caffe2/serialize/inline_container.cc, torch 2.13. Nothing
in the file is run: `torch_records` only takes dicts of dense tensors apart, `stored_zip` wants each
byte accounted for. Refused besides: files of torch before 1.6 (another container), TorchScript,
big-endian, complex, sparse or quantised tensors, subclasses, anything beside tensors in the dict,
and storages that no tensor uses.
"""

from __future__ import annotations

import mmap
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from minift.errors import FormatError, one_line
from minift.formats import placeholder, stored_zip
from minift.formats.stored_zip import Member
from minift.formats.torch_records import Entry, records
from minift.storage import map_file

RECORD_LIMIT = 100_000_000  # bytes of data.pkl
NOTE_LIMIT = 1 << 20  # bytes of any other member that is no storage


@dataclass(frozen=True)
class TorchFile:
    """What `read` found. The file is mapped: a tensor costs nothing until it is loaded."""

    path: Path
    tensors: dict[str, Entry]
    _members: dict[str, Member] = field(repr=False)  # by storage key
    _map: mmap.mmap | bytes = field(repr=False)
    _storages: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def load(self, name: str) -> Tensor:
        """The tensor, on memory of this process alone: writing to it never changes the file.

        Tensors that shared a storage when they were saved share it here. A storage's CRC is checked
        when its first tensor is loaded. Another program must not change the file meanwhile.
        """
        entry = self.tensors[name]
        if isinstance(self._map, mmap.mmap) and self._map.size() < len(self._map):
            found, allowed = "cut short since it was opened", f"{len(self._map):,} bytes"
            raise FormatError(self.path, "file", found, allowed, "truncated")
        if entry.storage not in self._storages:
            self._storages[entry.storage] = self._storage(entry)
        return self._storages[entry.storage].as_strided(entry.shape, entry.stride, entry.offset)

    def _storage(self, entry: Entry) -> Tensor:
        """The whole storage as a flat tensor."""
        member, where = self._members[entry.storage], f"storage {entry.storage}"
        _check_sum(self.path, where, self._map, member)
        size = member.stop - member.start
        if size == 0:
            return torch.empty(0, dtype=entry.dtype)
        raw = torch.frombuffer(self._map, dtype=torch.uint8, count=size, offset=member.start)
        if entry.dtype == torch.bool and bool((raw > 1).any()):
            found = f"byte {int(raw.max())}"
            raise FormatError(self.path, where, found, "0 or 1", "out-of-range")
        if member.start % entry.dtype.itemsize:  # legal, and no torch operation expects it
            raw = raw.clone()
        return raw.view(entry.dtype)


def read(path: str | os.PathLike[str]) -> TorchFile:
    """Open a file and check all but its storages' CRCs. Raises FormatError, and nothing else."""
    data = map_file(path)
    placeholder.check(path, data)
    if data[:4] != b"PK\x03\x04":
        found: object = data[:4]
        if data[:1] == b"\x80" or data[257:262] == b"ustar":
            found = "the format before torch 1.6: load and save it with a newer one"
        raise FormatError(path, "file", found, "a zip file", "bad-magic")
    members = stored_zip.members(path, data)
    top = next(iter(members), "").partition("/")[0] + "/"
    storages: dict[str, Member] = {}
    notes: dict[str, bytes] = {}
    for name, member in members.items():
        inside = name.removeprefix(top)
        if inside == name:
            raise FormatError(path, "zip", one_line(name), f"all in {one_line(top)}", "bad-path")
        if inside.startswith("data/"):
            storages[inside.removeprefix("data/")] = member
            continue
        limit = RECORD_LIMIT if inside == "data.pkl" else NOTE_LIMIT
        if member.stop - member.start > limit:
            found, allowed = f"{member.stop - member.start:,} bytes", f"at most {limit:,}"
            raise FormatError(path, one_line(inside), found, allowed, "too-large")
        _check_sum(path, one_line(inside), data, member)
        notes[inside] = data[member.start : member.stop]
        if inside in ("constants.pkl", "model.json") or inside.startswith("code/"):
            raise FormatError(path, one_line(inside), "TorchScript", "a state dict", "unsafe")
        if inside not in ("data.pkl", "version", "byteorder") and not inside.startswith("."):
            allowed = "data.pkl, data/, version, byteorder"
            raise FormatError(path, "zip", f"member {one_line(inside)}", allowed, "unknown-field")
    for wanted in ("data.pkl", "version"):
        if wanted not in notes:
            raise FormatError(path, "zip", f"no {wanted}", f"{top}{wanted}", "missing-field")
    if notes["version"].strip() != b"3":
        raise FormatError(path, "version", notes["version"], "3", "bad-version")
    if notes.get("byteorder", b"little") != b"little":
        raise FormatError(path, "byteorder", notes["byteorder"], "little", "bad-version")
    sizes = {key: member.stop - member.start for key, member in storages.items()}
    tensors = records(path, notes["data.pkl"], sizes)
    unused = storages.keys() - {entry.storage for entry in tensors.values()}
    if unused:
        found = f"{len(unused):,} that no tensor uses, such as {one_line(min(unused), 40)}"
        raise FormatError(path, "storages", found, "none", "hole")
    return TorchFile(Path(path), tensors, storages, data)


def _check_sum(
    path: str | os.PathLike[str], where: str, data: mmap.mmap | bytes, member: Member
) -> None:
    with memoryview(data) as view, view[member.start : member.stop] as part:
        found = zlib.crc32(part)
    if found != member.crc:
        raise FormatError(path, where, f"CRC {found:08x}", f"{member.crc:08x}", "bad-checksum")
