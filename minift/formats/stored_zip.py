"""The directory of a zip file whose members are stored as they are, which is how torch packs.

    members    30-byte local header, name, extra, the bytes; then, if bit 3 of its flags says so,
               a descriptor: CRC and sizes once more
    directory  46 bytes a member, name, extra: CRC, sizes, where its local header is
    end        a 64-bit record (56 bytes) and its locator (20), both optional, then 22 bytes

Layout source: APPNOTE 6.3.10 of PKWARE, sections 4.3 and 4.5. Everything is said two or three times
in such a file, and readers that believe different copies see different files. Here all copies must
agree, and the members must fill the file from byte 0 to the directory without a gap. Refused:
compression, encryption, several disks, comments, double names, names that are paths.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

from minift.errors import FormatError, one_line
from minift.formats.placeholder import CUT

MEMBER_LIMIT = 100_000
NAME_LIMIT = 512  # bytes
DESCRIPTOR, UTF8 = 1 << 3, 1 << 11  # the only flags that torch sets
WIDE32, WIDE16 = 0xFFFFFFFF, 0xFFFF  # "the number is in the 64-bit field"

_LOCAL, _CENTRAL = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
_END, _LOCATOR, _END64 = (
    struct.Struct("<4s4H2IH"),
    struct.Struct("<4sIQI"),
    struct.Struct("<4sQ2H2I4Q"),
)


@dataclass(frozen=True, slots=True)
class Member:
    """One member; its bytes are `start` to `stop` of the file."""

    start: int
    stop: int
    crc: int


@dataclass(frozen=True, slots=True)
class _Row:
    """What the directory says of a member."""

    header: int  # where its local header is
    size: int
    crc: int
    flags: int


def members(path: str | os.PathLike[str], data: mmap.mmap | bytes) -> dict[str, Member]:
    """Every member of a mapped file by name; raises FormatError, and nothing else."""
    start, stop, count = _end(path, data)
    if count > MEMBER_LIMIT:
        raise FormatError(path, "zip", f"{count:,} members", f"at most {MEMBER_LIMIT:,}", "limit")
    if count * _CENTRAL.size > stop - start:
        allowed = f"what fits its {stop - start:,} bytes"
        raise FormatError(path, "zip directory", f"{count:,} members", allowed, "truncated")
    rows, at = {}, start
    for _ in range(count):
        name, row, at = _row(path, data, at, stop)
        if name in rows:
            raise FormatError(path, "zip directory", f"{name!r} twice", "each once", "dup-key")
        rows[name] = row
    if at != stop:
        found = f"{stop - at:,} bytes after the last member"
        raise FormatError(path, "zip directory", found, "none", "trailing")
    order = sorted(rows.items(), key=lambda item: item[1].header)
    borders = [row.header for _, row in order] + [start]
    result, at = {}, 0
    for (name, row), border, following in zip(order, borders, borders[1:], strict=False):
        if border != at or following > start:
            code = "overlap" if border < at else "hole" if border > at else "out-of-range"
            found = f"{border:,} to {following:,}"
            raise FormatError(path, f'member "{one_line(name)}"', found, f"from {at:,}", code)
        result[name], at = _member(path, data, name, row, following)
    if at != start:
        raise FormatError(path, "zip directory", f"begins at {start:,}", f"{at:,}", "hole")
    return result


def _end(path: str | os.PathLike[str], data: mmap.mmap | bytes) -> tuple[int, int, int]:
    """(where the directory begins, where it ends, how many members), from the file's end."""
    at = len(data) - _END.size
    if at < 0 or data[at : at + 4] != b"PK\x05\x06":
        allowed = f"the end record of a zip file, without a comment {CUT}"
        raise FormatError(path, "end of file", data[max(at, 0) :][:8], allowed, "truncated")
    _, *disks, here, count, size, start, comment = _END.unpack(data[at:])
    if any(disks) or here != count or comment:
        found = f"disks {disks}, {here} of {count} members, a comment of {comment} bytes"
        raise FormatError(path, "zip end record", found, "one disk, no comment", "unsafe")
    locator = at - _LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        _, disk, wide, disks_in_all = _LOCATOR.unpack(data[locator:at])
        if disk or disks_in_all != 1 or wide != locator - _END64.size or wide < 0:
            found = f"a 64-bit record at {wide:,} of disk {disk}"
            allowed = f"{locator - _END64.size:,} of disk 0"
            raise FormatError(path, "zip locator", found, allowed, "bad-type")
        magic, length, _, _, *disks, here64, count64, size64, start64 = _END64.unpack(
            data[wide:locator]
        )
        narrow = [(count, count64, WIDE16), (size, size64, WIDE32), (start, start64, WIDE32)]
        agree = all(short in (long, full) for short, long, full in narrow)
        plain = magic == b"PK\x06\x06" and length == _END64.size - 12 and not any(disks)
        if not (agree and plain and here64 == count64):
            found = f"{count64:,} members, {size64:,} bytes at {start64:,}"
            allowed = "what the end record says, on one disk"
            raise FormatError(path, "zip 64-bit end record", found, allowed, "bad-type")
        count, size, start, at = count64, size64, start64, wide
    if start + size != at:
        code = "hole" if start + size < at else "out-of-range"
        found = f"{size:,} bytes at {start:,}"
        raise FormatError(path, "zip directory", found, f"its end at {at:,}", code)
    return start, at, count


def _row(
    path: str | os.PathLike[str], data: mmap.mmap | bytes, at: int, stop: int
) -> tuple[str, _Row, int]:
    """The directory's row at `at`, and where the next one begins."""
    if stop - at < _CENTRAL.size or data[at : at + 4] != b"PK\x01\x02":
        raise FormatError(
            path, f"zip directory byte {at:,}", data[at : at + 4], "a member", "truncated"
        )
    row = _CENTRAL.unpack(data[at : at + _CENTRAL.size])
    _, _, _, flags, method, _, _, crc, packed, size, *lengths, disk, _, _, header = row
    name_length, extra_length, comment_length = lengths
    at += _CENTRAL.size
    if name_length + extra_length > stop - at:
        found = f"{name_length + extra_length:,} bytes"
        raise FormatError(path, "zip directory", found, f"the {stop - at:,} left", "truncated")
    name = _name(path, data[at : at + name_length])
    at += name_length
    where = f'member "{one_line(name)}"'
    if flags & 1:
        raise FormatError(path, where, "an encrypted member", "a plain one", "unsafe")
    if method != 0:
        raise FormatError(path, where, f"compression {method}", "stored, as torch does", "unsafe")
    if flags & ~(DESCRIPTOR | UTF8) or disk or comment_length:
        found = f"flags {flags:#x}, disk {disk}, a comment of {comment_length} bytes"
        raise FormatError(path, where, found, "a plain member", "unsafe")
    extra = data[at : at + extra_length]
    wanted = [number == WIDE32 for number in (size, packed, header)]
    wide = _wide(path, where, extra, sum(wanted))
    size, packed, header = (
        wide.pop(0) if widened else number
        for widened, number in zip(wanted, (size, packed, header), strict=True)
    )
    if packed != size:
        raise FormatError(path, where, f"{packed:,} bytes for {size:,}", "as many", "bad-type")
    return name, _Row(header, size, crc, flags), at + extra_length


def _wide(path: str | os.PathLike[str], where: str, extra: bytes, count: int) -> list[int]:
    """The `count` numbers of the 64-bit field among the extra fields."""
    at, fields = 0, []
    while at < len(extra):
        kind, length = struct.unpack("<2H", extra[at : at + 4].ljust(4, b"\0"))
        field = extra[at + 4 : at + 4 + length]
        if len(extra) - at < 4 or len(field) < length:
            found = f"{len(extra) - at} bytes for {length + 4}"
            raise FormatError(path, f"{where} extra", found, "whole fields", "truncated")
        if kind == 1:
            fields.append(field)
        at += 4 + length
    if count == 0:  # torch adds the field to local headers that have no use for it
        return []
    if [len(field) for field in fields] != [8 * count]:
        found = f"{[len(field) for field in fields]} bytes"
        raise FormatError(path, f"{where} 64-bit field", found, f"{8 * count}", "truncated")
    return list(struct.unpack(f"<{count}Q", fields[0]))


def _name(path: str | os.PathLike[str], raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise FormatError(path, "zip directory", raw, "a name in UTF-8", "bad-utf8") from None
    plain = all(part not in ("", ".", "..") for part in name.split("/")) and "\\" not in name
    if not plain or not name.isprintable() or ":" in name or len(raw) > NAME_LIMIT:
        found, allowed = f"name {one_line(name)!r}", f"a relative path of 1 to {NAME_LIMIT} bytes"
        raise FormatError(path, "zip directory", found, allowed, "bad-path")
    return name


def _member(
    path: str | os.PathLike[str], data: mmap.mmap | bytes, name: str, row: _Row, following: int
) -> tuple[Member, int]:
    """The member whose local header the directory points at, and where it ends."""
    where = f'member "{one_line(name)}"'

    def differs(found: object, allowed: str) -> FormatError:
        return FormatError(path, f"{where} local header", found, allowed, "bad-type")

    at = row.header + _LOCAL.size
    if at > following:
        found = f"room for {following - row.header:,} bytes"
        raise FormatError(path, where, found, f"a header of {_LOCAL.size}", "overlap")
    if data[row.header : row.header + 4] != b"PK\x03\x04":
        raise differs(data[row.header : row.header + 4], "a local header")
    _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = _LOCAL.unpack(
        data[row.header : at]
    )
    if flags != row.flags or method != 0:
        raise differs(f"flags {flags:#x}, method {method}", f"{row.flags:#x}, 0 as the directory")
    start = at + name_length + extra_length
    if start > following or data[at : at + name_length] != name.encode():
        raise differs(f"name {data[at : min(at + name_length, following)]!r}", repr(name))
    wanted = [number == WIDE32 for number in (size, packed)]
    wide = _wide(path, where, data[at + name_length : start], sum(wanted))
    size, packed = (
        wide.pop(0) if widened else number
        for widened, number in zip(wanted, (size, packed), strict=True)
    )
    later = row.flags & DESCRIPTOR and (crc, packed, size) == (0, 0, 0)
    if not later and (crc, packed, size) != (row.crc, row.size, row.size):
        raise differs(f"{size:,} bytes, CRC {crc:08x}", f"{row.size:,}, {row.crc:08x}")
    stop = start + row.size
    if stop > following:
        code = "overlap" if stop <= len(data) else "truncated"
        found = f"{following - start:,} bytes"
        raise FormatError(path, where, found, f"its {row.size:,}", code)
    if not row.flags & DESCRIPTOR:
        return Member(start, stop, row.crc), stop
    narrow = following - stop == 16 and row.size <= WIDE32
    end = stop + (16 if narrow else 24)
    size_bytes = row.size.to_bytes(4 if narrow else 8, "little")
    if data[stop:end] != b"PK\x07\x08" + row.crc.to_bytes(4, "little") + size_bytes * 2:
        held = data[stop : min(following, end)]
        raise FormatError(path, f"{where} descriptor", held, "the directory's sizes", "bad-type")
    return Member(start, stop, row.crc), end
