"""The reader of PyTorch's files: torch's own, hostile ones, every cut, every bit."""

from __future__ import annotations

import contextlib
import io
import os
import random
import struct
import tarfile
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from minift.errors import FormatError
from minift.formats import torch_zip

GRID = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 4
TENSORS = {
    "f32": GRID,
    "bf16": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
    "f16": torch.tensor([0.5], dtype=torch.float16),
    "f64": torch.tensor([3.25, -1.0], dtype=torch.float64),
    "i64": torch.tensor([[-5, 1 << 40]]),
    "i32": torch.tensor([7], dtype=torch.int32),
    "i16": torch.tensor([8, -9], dtype=torch.int16),
    "i8": torch.tensor([-3], dtype=torch.int8),
    "u8": torch.tensor([[[200]]], dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "empty too": torch.zeros(2, 0, 3),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "sliced": torch.arange(20.0).reshape(4, 5)[1:3, ::2],
    "parameter": nn.Parameter(torch.ones(2)),
    "tied.a": GRID[0],
    "tied.b": GRID[:, 1],
    "ä": torch.zeros(1),
}


def saved(value: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, **options)
    return sink.getvalue()


def repacked(
    files: dict[str, bytes | None], value: Any = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """What torch saved, its members replaced, added or (None) left out, packed by zipfile."""
    source = io.BytesIO(saved({"w": GRID} if value is None else value))
    with zipfile.ZipFile(source) as archive:
        held: dict[str, bytes | None] = {n: archive.read(n) for n in archive.namelist()}
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", compression) as archive:
        for name, data in (held | files).items():
            if data is not None:
                archive.writestr(name, data)
    return sink.getvalue()


def opened(folder: Path, data: bytes) -> torch_zip.TorchFile:
    path = folder / "pytorch_model.bin"
    path.write_bytes(data)
    return torch_zip.read(path)


Read = Callable[[bytes], torch_zip.TorchFile]


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Read bytes without a file in between: for the tests that read thousands."""

    def read(data: bytes) -> torch_zip.TorchFile:
        monkeypatch.setattr(torch_zip, "map_file", lambda path: bytearray(data))
        return torch_zip.read("memory")

    return read


def same(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found, expected)


def test_reads_what_torch_writes(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin")  # named after the file inside
    file = torch_zip.read(tmp_path / "pytorch_model.bin")
    assert file.tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        tensor = file.load(name)
        assert file.tensors[name].dtype == expected.dtype
        assert file.tensors[name].shape == tuple(expected.shape)
        assert same(tensor, expected)
        assert tensor.stride() == expected.stride()
        assert not tensor.requires_grad


def test_reads_a_state_dict(in_memory: Read) -> None:
    model = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Linear(3, 5), nn.BatchNorm1d(5))
    model[2].weight = model[0].weight
    file = in_memory(saved(model.state_dict()))
    assert list(file.tensors) == list(model.state_dict())
    for name, expected in model.state_dict().items():
        assert same(file.load(name), expected)
    assert file.load("0.weight").data_ptr() == file.load("2.weight").data_ptr()


def test_tensors_that_shared_memory_still_do(tmp_path: Path) -> None:
    file = opened(tmp_path, saved(TENSORS))
    whole, row, column = file.load("f32"), file.load("tied.a"), file.load("tied.b")
    whole.fill_(7)
    assert row.tolist() == [7, 7, 7]
    assert column.tolist() == [7, 7]
    assert whole.untyped_storage().data_ptr() == row.untyped_storage().data_ptr()
    assert file.path.read_bytes() == saved(TENSORS)
    assert same(torch_zip.read(file.path).load("f32"), GRID)


@pytest.mark.parametrize("shift", range(8))
def test_reads_what_another_program_packed(in_memory: Read, shift: int) -> None:
    """zipfile does not align the storages."""
    file = in_memory(repacked({"archive/.note": b"n" * shift}, TENSORS))
    for name, expected in TENSORS.items():
        assert same(file.load(name), expected)
    assert file.load("f32").data_ptr() == file.load("tied.a").data_ptr()


def test_reads_the_64_bit_numbers_of_a_file_over_4_gb(tmp_path: Path) -> None:
    golden = np.load(Path(__file__).parents[1] / "golden" / "torch_zip.npz")
    path = tmp_path / "pytorch_model.bin"
    with open(path, "wb") as sink:  # 4 GiB of it are a hole
        sink.write(golden["head"].tobytes())
        sink.truncate(int(golden["size"]) - len(golden["tail"]))
        sink.seek(0, os.SEEK_END)
        sink.write(golden["tail"].tobytes())
    file = torch_zip.read(path)
    assert file.tensors["a"].shape == ((1 << 30) + 16,)
    assert file.load("b").tolist() == [1.0, -2.0, 3.0]
    assert file.load("c").tolist() == [4.5, 5.5]
    assert file.load("b.again").data_ptr() == file.load("b").data_ptr()


def with_attribute() -> Tensor:
    tensor = torch.zeros(2)
    tensor.note = "hello"  # type: ignore[attr-defined]
    return tensor


def tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("tensors"), io.BytesIO())
    return sink.getvalue()


def quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


OTHER = b"\x80\x02}q\x00."
BAD: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "bad-magic"),
    "three bytes": (b"PK\x03", "bad-magic"),
    "only the magic": (b"PK\x03\x04", "truncated"),
    "a text": (b"hello" * 100, "bad-magic"),
    "the format before torch 1.6": (
        saved({"w": GRID}, _use_new_zipfile_serialization=False), "bad-magic",
    ),
    "a tar file": (tar(), "bad-magic"),
    "an empty zip": (b"PK\x05\x06" + bytes(18), "bad-magic"),
    "a list of tensors": (saved([GRID]), "bad-type"),
    "a tensor": (saved(GRID), "bad-type"),
    "a training checkpoint": (saved({"state_dict": {"w": GRID}, "epoch": 3}), "bad-type"),
    "a tensor and a number": (saved({"w": GRID, "step": 3}), "bad-type"),
    "a tensor and a float": (saved({"w": GRID, "loss": 0.5}), "unsafe"),
    "keys that are numbers": (saved({0: GRID}), "bad-type"),
    "protocol 4": (saved({"w": GRID}, pickle_protocol=4), "bad-version"),
    "a module": (saved(nn.Linear(1, 1)), "unsafe"),
    "a size": (saved({"w": GRID.shape}), "unsafe"),
    "a sparse tensor": (quietly(lambda: saved({"w": GRID.to_sparse()})), "unsafe"),
    "a compressed tensor": (quietly(lambda: saved({"w": GRID.to_sparse_csr()})), "unsafe"),
    "a quantised tensor": (
        quietly(lambda: saved({"w": torch.quantize_per_tensor(GRID, 0.1, 0, torch.qint8)})),
        "unsafe",
    ),
    "a complex tensor": (saved({"w": torch.zeros(2, dtype=torch.complex64)}), "bad-dtype"),
    "a conjugate": (saved({"w": torch.zeros(2, dtype=torch.complex64).conj()}), "bad-dtype"),
    "a negated view": (saved({"w": torch._neg_view(GRID)}), "bad-type"),
    "an unsigned tensor": (saved({"w": torch.zeros(2, dtype=torch.uint16)}), "unsafe"),
    "a float8 tensor": (saved({"w": torch.zeros(2).to(torch.float8_e4m3fn)}), "unsafe"),
    "a tensor with an attribute": (saved({"w": with_attribute()}), "unsafe"),
    "a meta tensor": (saved({"w": torch.zeros(2, device="meta")}), "unsafe"),
    "a storage": (quietly(lambda: saved({"w": GRID.untyped_storage()})), "bad-dtype"),
    "one value a million times": (saved({"w": torch.zeros(1).expand(10**6)}), "out-of-range"),
    "an array": (saved({"w": np.zeros(2)}), "unsafe"),
    "a function": (saved({"w": os.system}), "unsafe"),
    "a name that is a path": (saved({"../w": GRID}), "unsafe"),
    "an empty name": (saved({"": GRID}), "unsafe"),
    "compressed": (repacked({}, compression=zipfile.ZIP_DEFLATED), "unsafe"),
    "bzip2": (repacked({}, compression=zipfile.ZIP_BZIP2), "unsafe"),
    "big-endian": (repacked({"archive/byteorder": b"big"}), "bad-version"),
    "no such byte order": (repacked({"archive/byteorder": b"little\n"}), "bad-version"),
    "version 2": (repacked({"archive/version": b"2\n"}), "bad-version"),
    "version 4": (repacked({"archive/version": b"4\n"}), "bad-version"),
    "no version": (repacked({"archive/version": None}), "missing-field"),
    "no data.pkl": (repacked({"archive/data.pkl": None}), "missing-field"),
    "a data.pkl of nothing": (repacked({"archive/data.pkl": b""}), "bad-version"),
    "a data.pkl of another dict": (repacked({"archive/data.pkl": OTHER}), "hole"),
    "data.pkl as a folder": (repacked({"archive/data.pkl/x": b""}), "unknown-field"),
    "a storage that is missing": (repacked({"archive/data/0": None}), "missing-field"),
    "a storage cut": (repacked({"archive/data/0": bytes(20)}), "shape-mismatch"),
    "a storage too long": (repacked({"archive/data/0": bytes(28)}), "shape-mismatch"),
    "a storage of nothing": (repacked({"archive/data/0": b""}), "shape-mismatch"),
    "a storage that is not used": (repacked({"archive/data/1": b"x"}), "hole"),
    "a storage deeper down": (repacked({"archive/data/1/2": b""}), "hole"),
    "a storage under another folder": (
        repacked({"archive/data/0": None, "other/data/0": bytes(24)}), "bad-path",
    ),
    "a member outside": (repacked({"x": b""}), "bad-path"),
    "a path upwards": (repacked({"archive/../x": b""}), "bad-path"),
    "all at the top": (repacked({"data.pkl": b""}), "bad-path"),
    "TorchScript's code": (repacked({"archive/code/w.py": b""}), "unsafe"),
    "TorchScript's constants": (repacked({"archive/constants.pkl": OTHER}), "unsafe"),
    "another member": (repacked({"archive/extra": b""}), "unknown-field"),
    "another program": (repacked({"archive/second.pkl": OTHER}), "unknown-field"),
    "a note of a megabyte and a byte": (
        repacked({"archive/.x": bytes((1 << 20) + 1)}), "too-large",
    ),
    "a version of a megabyte and a byte": (
        repacked({"archive/version": b"3" + b" " * (1 << 20)}), "too-large",
    ),
}  # fmt: skip


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
    assert str(caught.value).startswith(str(tmp_path / "pytorch_model.bin"))
    assert "\n" not in str(caught.value)
    assert peak < (1 << 20) + 2 * len(data)


def test_takes_a_file_without_byte_order_or_notes(in_memory: Read) -> None:
    """torch before 2.1 wrote no byte order."""
    without = ("byteorder", ".format_version", ".storage_alignment", ".data/serialization_id")
    file = in_memory(repacked({f"archive/{name}": None for name in without}))
    assert same(file.load("w"), GRID)


def test_takes_no_tensors(in_memory: Read) -> None:
    assert in_memory(saved({})).tensors == {}
    assert in_memory(saved(OrderedDict())).tensors == {}


def test_limits(in_memory: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved({"w": GRID})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = archive.getinfo("archive/data.pkl").file_size
    monkeypatch.setattr(torch_zip, "RECORD_LIMIT", size)
    monkeypatch.setattr(torch_zip, "NOTE_LIMIT", 40)  # the serialization id
    assert same(in_memory(data).load("w"), GRID)
    for name, value in (("RECORD_LIMIT", size - 1), ("NOTE_LIMIT", 39)):
        monkeypatch.undo()
        monkeypatch.setattr(torch_zip, name, value)
        with pytest.raises(FormatError) as caught:
            in_memory(data)
        assert caught.value.code == "too-large"


def test_a_boolean_is_zero_or_one(in_memory: Read) -> None:
    file = in_memory(repacked({"archive/data/0": b"\0\1\2"}, {"w": TENSORS["bool"]}))
    with pytest.raises(FormatError) as caught:
        file.load("w")
    assert caught.value.code == "out-of-range"


def test_a_storage_is_checked_when_it_is_loaded(in_memory: Read) -> None:
    data = saved({"w": GRID, "v": torch.ones(2)})
    at = data.index(struct.pack("<6f", *GRID.flatten()))
    file = in_memory(data[:at] + b"\1" + data[at + 1 :])
    assert same(file.load("v"), torch.ones(2))
    with pytest.raises(FormatError, match="storage 0: found CRC") as caught:
        file.load("w")
    assert caught.value.code == "bad-checksum"


def test_the_description_is_checked_when_it_is_read(in_memory: Read) -> None:
    data = saved({"name": GRID})
    with pytest.raises(FormatError) as caught:
        in_memory(data.replace(b"name", b"nome"))
    assert caught.value.code == "bad-checksum"


def test_a_loaded_tensor_outlives_the_file(tmp_path: Path) -> None:
    file = opened(tmp_path, saved(TENSORS))
    tensor = file.load("f64")
    file.path.unlink()
    del file
    assert same(tensor, TENSORS["f64"])


def test_a_file_cut_short_after_opening(tmp_path: Path) -> None:
    file = opened(tmp_path, saved(TENSORS))
    os.truncate(file.path, 100)
    with pytest.raises(FormatError) as caught:
        file.load("f32")
    assert caught.value.code == "truncated"


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(FormatError) as caught:
        torch_zip.read(path)
    assert caught.value.code == "bad-path"


SMALL = saved({"w": GRID, "v": GRID.T})


def test_every_cut_is_refused(in_memory: Read) -> None:
    for size in range(len(SMALL)):
        with pytest.raises(FormatError):
            in_memory(SMALL[:size])


def test_every_flipped_bit_is_refused_or_changes_nothing(in_memory: Read) -> None:
    """What is still taken is padding, a date, a note's name: never a name or a value."""
    taken = 0
    for bit in range(8 * len(SMALL)):
        data = bytearray(SMALL)
        data[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(FormatError):
            file = in_memory(bytes(data))
            assert list(file.tensors) == ["w", "v"]
            assert same(file.load("w"), GRID)
            assert same(file.load("v"), GRID.T)
            taken += 1
    assert taken < 8 * 700  # of 1,600 bytes


FEW = ("f32", "bf16", "bool", "scalar", "empty", "transposed", "parameter", "tied.a")
with zipfile.ZipFile(io.BytesIO(saved({name: TENSORS[name] for name in FEW}))) as _archive:
    MEMBERS = {name: _archive.read(name) for name in _archive.namelist()}


def mutated(seed: random.Random) -> bytes:
    """A file that was valid once: its description changed and the sums made right, or its bytes."""
    changes = [b"q\0", b"h\0", b"h\1", b"(", b")", b"t", b"}", b"u", b"s", b"N", b"R", b"Q", b"b"]
    changes += [b"\x8a\x08" + struct.pack("<q", n) for n in (-1, 1 << 31, 1 << 62, (1 << 63) - 1)]
    changes += [b"K\xff", b"M\xff\xff", b"J\xff\xff\xff\xff", b"X\xff\xff\xff\x7f", b"\x88", b"."]
    members = dict(MEMBERS)
    name = "archive/data.pkl" if seed.random() < 0.9 else seed.choice(list(members))
    data = bytearray(members.pop(name))
    for _ in range(seed.randint(1, 3)):
        at = seed.randrange(len(data) + 1)
        match seed.randrange(5):
            case 0:
                data[at : at + 1] = seed.randbytes(1)
            case 1:
                del data[at : at + seed.randint(1, 4)]
            case 2:
                data[at:at] = seed.choice(changes)
            case 3:
                piece = seed.choice(changes)
                data[at : at + len(piece)] = piece
            case 4:
                data[at:at] = data[at : at + seed.randint(1, 60)]
    members[name] = bytes(data)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    whole = bytearray(sink.getvalue())
    if seed.random() < 0.2:
        for _ in range(seed.randint(1, 3)):
            whole[seed.randrange(len(whole))] = seed.randrange(256)
    return bytes(whole)


def test_fuzz(in_memory: Read) -> None:
    """Mutated files: a FormatError, or tensors that all load and can be read."""
    seed = random.Random(0)
    for _ in range(1500):
        with contextlib.suppress(FormatError):
            file = in_memory(mutated(seed))
            for name in file.tensors:
                file.load(name).clone()


def whole(folder: Path, data: bytes) -> None:
    file = opened(folder, data)
    for name in file.tensors:
        file.load(name)


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""
    crc = bytearray(saved({"w": GRID}))
    crc[crc.index(struct.pack("<6f", *GRID.flatten()))] ^= 1
    members: dict[str, bytes | None] = {f"archive/data/{i}": b"" for i in range(1, 8000)}
    nested = {"archive/data/1": saved({"w": GRID})}
    many = b"\x80\x02}(" + b"".join(
        b"X" + struct.pack("<I", 6) + b"%06d" % i + b"N" for i in range(70_000)
    )
    cases = BAD | {
        "a storage of other bytes": (bytes(crc), "bad-checksum"),
        "a boolean that is 2": (
            repacked({"archive/data/0": b"\0\1\2"}, {"w": TENSORS["bool"]}), "out-of-range",
        ),
        "8,000 storages that nothing uses": (repacked(members), "hole"),
        "a whole other file inside": (repacked(nested), "hole"),
        "a megabyte of keys": (repacked({"archive/data.pkl": many + b"u."}), "bad-type"),
        "a megabyte of lists": (
            repacked({"archive/data.pkl": b"\x80\x02]" + b"]a" * 500_000 + b"."}), "bad-type",
        ),
        "a megabyte of dicts": (
            repacked({"archive/data.pkl": b"\x80\x02" + b"}" * 1_000_000}), "limit",
        ),
        "a megabyte of marks": (
            repacked({"archive/data.pkl": b"\x80\x02" + b"(" * 1_000_000}), "limit",
        ),
        "a megabyte of nothing": (repacked({"archive/data.pkl": bytes(1 << 20)}), "bad-version"),
        "a text of a megabyte": (
            repacked({"archive/data.pkl": b"\x80\x02X\0\0\x10\0" + b"a" * (1 << 20) + b"."}),
            "bad-type",
        ),
    }  # fmt: skip
    return {name: (partial(whole, data=data), code) for name, (data, code) in cases.items()}
