"""The zip directory: files of Python's zipfile, and hostile ones packed here, field by field."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minift.errors import FormatError
from minift.formats import stored_zip
from minift.formats.stored_zip import members

FILES = {"x/a": b"first", "x/b/c": b"", "x/d": b"third one"}
FULL32, FULL16 = 0xFFFFFFFF, 0xFFFF


def packed(
    files: dict[str, bytes] | None = None,
    *,
    local: dict[str, Any] | None = None,
    row: dict[str, Any] | None = None,
    end: dict[str, Any] | None = None,
    wide: dict[str, Any] | None = None,
    descriptor: bytes | None = None,
    before: bytes = b"",
    after: bytes = b"",
    last: bytes = b"",
) -> bytes:
    """A zip file. `local` and `row` replace fields of the last file's headers, `end` and `wide`
    those of the end records; `before`, `after`, `last` are put before it, after it, at the end."""
    out, rows, at_last = b"", [], list(files or FILES)[-1]
    for name, data in (files or FILES).items():
        mine = name == at_last
        out += before if mine else b""
        raw, start = name.encode("utf-8", "surrogateescape"), len(out)
        crc = zlib.crc32(data)
        head = {"magic": b"PK\3\4", "needs": 0, "flags": 0, "method": 0, "time": 0, "crc": crc}
        head |= {"packed": len(data), "size": len(data), "name": raw, "extra": b""}
        top = head | {"magic": b"PK\1\2", "comment": b"", "disk": 0, "inside": 0, "outside": 0}
        top |= {"header": start}
        if mine:
            head |= local or {}
            top |= row or {}
        lengths = struct.pack("<2H", len(head["name"]), len(head["extra"]))
        out += struct.pack("<4s3HI3I", *list(head.values())[:8]) + lengths
        out += head["name"] + head["extra"] + data
        out += (descriptor or b"") + after if mine else b""
        rows.append(
            struct.pack("<4sH3HI3I", top["magic"], 0, *list(top.values())[1:8])
            + struct.pack("<3H", len(top["name"]), len(top["extra"]), len(top["comment"]))
            + struct.pack("<2H2I", top["disk"], top["inside"], top["outside"], top["header"])
            + top["name"] + top["extra"] + top["comment"]
        )  # fmt: skip
    directory, start = b"".join(rows), len(out)
    out += directory
    fields = {"magic": b"PK\5\6", "disk": 0, "first": 0, "here": len(rows), "count": len(rows)}
    fields |= {"size": len(directory), "start": start, "comment": 0}
    if wide is not None:
        big = {"magic": b"PK\6\6", "length": 44, "by": 0, "needs": 0, "disk": 0, "first": 0}
        big |= {"here": len(rows), "count": len(rows), "size": len(directory), "start": start}
        seek = {"magic": b"PK\6\7", "disk": 0, "at": len(out), "disks": 1}
        seek |= {key[7:]: value for key, value in wide.items() if key.startswith("locator")}
        big |= {key: value for key, value in wide.items() if not key.startswith("locator")}
        out += struct.pack("<4sQ2H2I4Q", *big.values()) + struct.pack("<4sIQI", *seek.values())
    return out + struct.pack("<4s4H2IH", *(fields | (end or {})).values()) + last


def extra(kind: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<2H", kind, len(data) if length is None else length) + data


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


LAST = FILES["x/d"]
CRC = zlib.crc32(LAST)
LATER: dict[str, Any] = {"flags": 8, "crc": 0, "packed": 0, "size": 0}
SHORT = struct.pack("<4s3I", b"PK\7\x08", CRC, len(LAST), len(LAST))
LONG = struct.pack("<4sI2Q", b"PK\7\x08", CRC, len(LAST), len(LAST))
WIDE_ROW = {"packed": FULL32, "size": FULL32, "header": FULL32}
AT = len(packed()) - 22 - (46 * 3 + 11) - 30 - 3 - len(LAST)  # the last local header
GOOD = {
    "three files": packed(),
    "64-bit end records": packed(wide={}),
    "64-bit end records that are needed": packed(
        wide={}, end={"here": FULL16, "count": FULL16, "size": FULL32, "start": FULL32}
    ),
    "a padded local header": packed(local={"extra": extra(0x4246, b"Z" * 40)}),
    "extra fields in the directory": packed(row={"extra": extra(9, b"abc") + extra(10, b"")}),
    "a descriptor": packed(local=LATER, row={"flags": 8}, descriptor=SHORT),
    "a descriptor of 24 bytes": packed(local=LATER, row={"flags": 8}, descriptor=LONG),
    "a descriptor, and the sizes before it too": packed(
        local={"flags": 8}, row={"flags": 8}, descriptor=SHORT
    ),
    "64-bit numbers in the directory": packed(
        row=WIDE_ROW | {"extra": extra(1, numbers(len(LAST), len(LAST), AT))}
    ),
    "a 64-bit offset alone": packed(row={"header": FULL32, "extra": extra(1, numbers(AT))}),
    "64-bit numbers in the local header": packed(
        local={
            "packed": FULL32,
            "size": FULL32,
            "extra": extra(1, numbers(len(LAST), len(LAST))),
        }
    ),
    "a 64-bit field that nothing asks for": packed(local={"extra": extra(1, numbers(0))}),
    "names in UTF-8": packed({"ä/б": b"x"}, local={"flags": 1 << 11}, row={"flags": 1 << 11}),
    "a name of 512 bytes": packed({"n" * 512: b"x"}),
}
BAD = {
    "an empty file": (b"", "truncated"),
    "21 bytes": (packed({})[-22:][:21], "truncated"),
    "no end record": (packed()[:-22], "truncated"),
    "a comment": (packed(end={"comment": 4}, last=b"text"), "truncated"),
    "a comment that is not there": (packed(end={"comment": 4}), "unsafe"),
    "a byte after the end": (packed(last=b"\0"), "truncated"),
    "two zip files": (packed() + packed(), "hole"),
    "a program before the zip": (b"MZ" + packed(), "hole"),
    "on disk 1": (packed(end={"disk": 1}), "unsafe"),
    "directory on disk 1": (packed(end={"first": 1}), "unsafe"),
    "fewer members here": (packed(end={"here": 2}), "unsafe"),
    "two members of three": (packed(end={"here": 2, "count": 2}), "trailing"),
    "four members of three": (packed(end={"here": 4, "count": 4}), "truncated"),
    "65,534 members": (packed(end={"here": 65534, "count": 65534}), "truncated"),
    "no members, said to be": (packed(end={"here": 0, "count": 0}), "trailing"),
    "2^64 - 1 members": (
        packed(wide={"here": 2**64 - 1, "count": 2**64 - 1}, end={"here": FULL16, "count": FULL16}),
        "limit",
    ),
    "100,000 members of three": (
        packed(wide={"here": 10**5, "count": 10**5}, end={"here": FULL16, "count": FULL16}),
        "truncated",
    ),
    "a directory one byte short": (packed(end={"size": 148}), "hole"),
    "a directory one byte long": (packed(end={"size": 150}), "out-of-range"),
    "a directory of 4 GB": (packed(end={"size": FULL32 - 1}), "out-of-range"),
    "a directory that begins at 0": (packed(end={"start": 0}), "hole"),
    "a directory beyond the file": (packed(end={"start": 1 << 31}), "out-of-range"),
    "a directory of 2^64": (
        packed(wide={"size": 2**64 - 1}, end={"size": FULL32}),
        "out-of-range",
    ),
    "64-bit end that differs": (packed(wide={"count": 2, "here": 2}), "bad-type"),
    "64-bit end with another magic": (packed(wide={"magic": b"PK\6\5"}), "bad-type"),
    "64-bit end of another length": (packed(wide={"length": 45}), "bad-type"),
    "64-bit end of 2^64 bytes": (packed(wide={"length": 2**64 - 1}), "bad-type"),
    "64-bit end on disk 1": (packed(wide={"disk": 1}), "bad-type"),
    "64-bit end, fewer here": (packed(wide={"here": 2}), "bad-type"),
    "locator to 0": (packed(wide={"locatorat": 0}), "bad-type"),
    "locator to 2^64 - 1": (packed(wide={"locatorat": 2**64 - 1}), "bad-type"),
    "locator of two disks": (packed(wide={"locatordisks": 2}), "bad-type"),
    "locator of disk 1": (packed(wide={"locatordisk": 1}), "bad-type"),
    "locator without its record": (
        struct.pack("<4sIQI4s4H2IH", b"PK\6\7", 0, 0, 1, b"PK\5\6", 0, 0, 0, 0, 0, 0, 0),
        "bad-type",
    ),
    "a directory row with another magic": (packed(row={"magic": b"PK\3\4"}), "truncated"),
    "compressed": (packed(row={"method": 8}, local={"method": 8}), "unsafe"),
    "compressed in the local header": (packed(local={"method": 8}), "bad-type"),
    "compressed in the directory": (packed(row={"method": 8}), "unsafe"),
    "encrypted": (packed(row={"flags": 1}, local={"flags": 1}), "unsafe"),
    "encrypted in the local header": (packed(local={"flags": 1}), "bad-type"),
    "a masked header": (packed(row={"flags": 1 << 13}, local={"flags": 1 << 13}), "unsafe"),
    "a patch": (packed(row={"flags": 1 << 5}, local={"flags": 1 << 5}), "unsafe"),
    "a member on disk 1": (packed(row={"disk": 1}), "unsafe"),
    "a member with a comment": (packed(row={"comment": b"text"}), "unsafe"),
    "a member twice": (packed({"x/a": b"1", "x/b": b"2"}, row={"name": b"x/a"}), "dup-key"),
    "another name in the local header": (packed(local={"name": b"x/e"}), "bad-type"),
    "a longer name in the local header": (packed(local={"name": b"x/dd"}), "bad-type"),
    "a shorter name in the local header": (packed(local={"name": b"x/"}), "bad-type"),
    "another CRC in the local header": (packed(local={"crc": 1}), "bad-type"),
    "another size in the local header": (packed(local={"size": 8, "packed": 8}), "bad-type"),
    "no size in the local header": (packed(local={"crc": 0, "size": 0, "packed": 0}), "bad-type"),
    "packed smaller than it is": (packed(row={"packed": 5}), "bad-type"),
    "larger than it is": (packed(row={"size": 10, "packed": 10}), "bad-type"),
    "larger than it is, twice": (
        packed(row={"size": 10, "packed": 10}, local={"size": 10, "packed": 10}),
        "overlap",
    ),
    "larger than the file": (
        packed(
            row={"size": FULL32 - 1, "packed": FULL32 - 1},
            local={"size": FULL32 - 1, "packed": FULL32 - 1},
        ),
        "truncated",
    ),
    "smaller than it is, twice": (
        packed(row={"size": 8, "packed": 8}, local={"size": 8, "packed": 8}),
        "hole",
    ),
    "a hole before a member": (packed(before=b"\0"), "hole"),
    "a hole after a member": (packed(after=b"\0"), "hole"),
    "a whole other file in a hole": (packed(before=packed()), "hole"),
    "a member that begins inside another": (packed(row={"header": AT - 1}), "bad-type"),
    "a member that begins where another does": (packed(row={"header": 0}), "overlap"),
    "a member beyond the directory": (packed(row={"header": AT + 60}), "out-of-range"),
    "a member beyond the file": (packed(row={"header": 1 << 30}), "out-of-range"),
    "two members of the same bytes": (
        packed({"x/a": b"1", "x/b": b"1"}, row={"header": 0}),
        "overlap",
    ),
    "no local header": (packed(local={"magic": b"PK\1\2"}), "bad-type"),
    "a descriptor that is not said": (packed(descriptor=SHORT), "hole"),
    "a descriptor that is not there": (packed(local=LATER, row={"flags": 8}), "bad-type"),
    "a descriptor of another CRC": (
        packed(local=LATER, row={"flags": 8, "crc": 1}, descriptor=SHORT),
        "bad-type",
    ),
    "a descriptor without its mark": (
        packed(local=LATER, row={"flags": 8}, descriptor=SHORT[4:]),
        "bad-type",
    ),
    "a descriptor and a hole": (
        packed(local=LATER, row={"flags": 8}, descriptor=LONG, after=b"\0"),
        "hole",
    ),
    "a descriptor cut": (
        packed(local=LATER, row={"flags": 8}, descriptor=LONG[:-1]),
        "bad-type",
    ),
    "64-bit numbers that are missing": (packed(row=WIDE_ROW), "truncated"),
    "64-bit numbers, one of three": (
        packed(row=WIDE_ROW | {"extra": extra(1, numbers(len(LAST)))}),
        "truncated",
    ),
    "64-bit numbers twice": (
        packed(row=WIDE_ROW | {"extra": extra(1, numbers(len(LAST), len(LAST), AT)) * 2}),
        "truncated",
    ),
    "64-bit numbers of 2^64 - 1": (
        packed(row=WIDE_ROW | {"extra": extra(1, numbers(2**64 - 1, 2**64 - 1, AT))}),
        "bad-type",
    ),
    "a 64-bit offset of 2^64 - 1": (
        packed(row={"header": FULL32, "extra": extra(1, numbers(2**64 - 1))}),
        "out-of-range",
    ),
    "64-bit numbers missing in the local header": (
        packed(local={"packed": FULL32, "size": FULL32}),
        "truncated",
    ),
    "an extra field longer than all": (packed(row={"extra": extra(9, b"abc", 4)}), "truncated"),
    "an extra field of three bytes": (packed(row={"extra": b"abc"}), "truncated"),
    "an extra field of 64 KB": (packed(row={"extra": extra(9, b"", FULL16)}), "truncated"),
    "no name": (packed({"": b"x"}), "bad-path"),
    "a name of 513 bytes": (packed({"n" * 513: b"x"}), "bad-path"),
    "a name that is not UTF-8": (packed({"\udcff": b"x"}), "bad-utf8"),
    "a name with NUL": (packed({"a\0": b"x"}), "bad-path"),
    "a name with a line end": (packed({"a\nb": b"x"}), "bad-path"),
    "a path upwards": (packed({"../a": b"x"}), "bad-path"),
    "a path upwards in the middle": (packed({"a/../b": b"x"}), "bad-path"),
    "an absolute path": (packed({"/a": b"x"}), "bad-path"),
    "a Windows path": (packed({"..\\a": b"x"}), "bad-path"),
    "a drive": (packed({"c:a": b"x"}), "bad-path"),
    "a dot": (packed({"./a": b"x"}), "bad-path"),
    "a folder": (packed({"a/": b""}), "bad-path"),
    "a double slash": (packed({"a//b": b"x"}), "bad-path"),
}


def found(data: bytes) -> dict[str, bytes]:
    return {name: data[m.start : m.stop] for name, m in members("w.zip", data).items()}


def by_python(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("name", GOOD)
def test_takes_what_python_takes(name: str) -> None:
    data = GOOD[name]
    assert found(data) == by_python(data) != {}
    assert all(zlib.crc32(data[m.start : m.stop]) == m.crc for m in members("w", data).values())


def test_takes_what_python_writes() -> None:
    class Pipe(io.BytesIO):  # what cannot seek gets descriptors
        def seekable(self) -> bool:
            return False

        def seek(self, *_: object) -> int:
            raise OSError

        def tell(self) -> int:
            raise OSError

    for sink in (io.BytesIO(), Pipe()):
        with zipfile.ZipFile(sink, "w") as archive:
            for name, data in FILES.items():
                archive.writestr(name, data)
            with archive.open("x/large", "w", force_zip64=True) as member:
                member.write(b"64 bits")
        assert found(sink.getvalue()) == FILES | {"x/large": b"64 bits"}


def test_takes_a_zip_of_nothing() -> None:
    assert found(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, 0, 0, 0)) == {}


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str) -> None:
    data, code = BAD[name]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            members("w.zip", data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert str(caught.value).startswith("w.zip: ")
    assert "\n" not in str(caught.value)
    assert peak < 1 << 20


def test_limit_of_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_zip, "MEMBER_LIMIT", 3)
    assert len(found(packed())) == 3
    monkeypatch.setattr(stored_zip, "MEMBER_LIMIT", 2)
    with pytest.raises(FormatError) as caught:
        members("w.zip", packed())
    assert caught.value.code == "limit"


@pytest.mark.parametrize("name", GOOD)
def test_every_cut_is_refused(name: str) -> None:
    for size in range(len(GOOD[name])):
        with pytest.raises(FormatError):
            members("w.zip", GOOD[name][:size])


@pytest.mark.parametrize("name", [name for name in GOOD if "512" not in name])
def test_every_flipped_bit_is_refused_or_changes_no_structure(name: str) -> None:
    """What is still taken differs in a name, a date, an extra field or the members' own bytes."""
    original = found(GOOD[name])
    for bit in range(8 * len(GOOD[name])):
        data = bytearray(GOOD[name])
        data[bit // 8] ^= 1 << bit % 8
        try:
            got = found(bytes(data))
        except FormatError:
            continue
        assert [len(value) for value in got.values()] == [len(v) for v in original.values()]
        assert sum(a != b for a, b in zip(got.items(), original.items(), strict=True)) <= 1


def test_fuzz() -> None:
    seed = random.Random(0)
    files = list(GOOD.values())
    for _ in range(3000):
        data = bytearray(seed.choice(files))
        for _ in range(seed.randint(1, 4)):
            at = seed.randrange(len(data))
            match seed.randrange(3):
                case 0:
                    data[at] = seed.randrange(256)
                case 1:
                    data[at : at + 4] = seed.choice([b"\xff" * 4, bytes(4), b"PK\3\4", b"PK\1\2"])
                case 2:
                    del data[at : at + seed.randint(1, 3)]
        with contextlib.suppress(FormatError):
            found(bytes(data))


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""
    return {
        name: (lambda folder, data=data: members("w.zip", data), code)
        for name, (data, code) in BAD.items()
    }
