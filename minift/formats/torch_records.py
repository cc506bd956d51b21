"""The pickle inside a PyTorch file, read by an interpreter that can only describe tensors.

A pickle is a program for a stack machine; Python's own runs whatever functions it names. This one
knows the 29 instructions of protocol 2 that a state dict is made of, and nothing to call but:

    collections.OrderedDict()                                      an empty dict
    torch._utils._rebuild_tensor_v2(storage, offset, size, stride, grad, hooks)       an `Entry`
    torch._utils._rebuild_parameter(tensor, grad, hooks)           that tensor
    ("storage", torch.FloatStorage, key, device, count)            a persistent id: a storage

These give records, never objects of torch. Sources: the reference of Python's pickletools, and
torch/_utils.py and torch/serialization.py for what the records mean. The result must be one dict of
tensors by name; a state dict's `_metadata` attribute is dropped. Values can hold each other, in
circles even: nothing here walks into them, so depth costs nothing.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from minift.errors import FormatError, one_line
from minift.formats.safetensors import TENSOR_LIMIT, name_problem
from minift.formats.strict_json import uncollected

OP_LIMIT = 10_000_000
STACK_LIMIT = 2 * TENSOR_LIMIT + 1000  # a dict may come as one run of keys and values
MARK_LIMIT = 64
TUPLE_LIMIT = 8  # items: no shape is longer
LINE_LIMIT = 256  # bytes of a function's name

ORDERED = "collections OrderedDict"
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
FOREIGN = {  # what refused instructions make, for the message
    **dict.fromkeys(b"GF", "a float"),
    **dict.fromkeys(b"BCTUS", "bytes or a text of Python 2"),
    **dict.fromkeys(b"io\x81\x92", "an object of a class"),
    **dict.fromkeys(b"\x82\x83\x84", "a registered class"),
    **dict.fromkeys(b"P", "a persistent id in text"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: a view of a storage. Offset and strides count elements of `dtype`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: str  # its key

    @property
    def kind(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True)
class _Global:
    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


class _Nothing:
    """What an empty memo place holds."""


def records(
    path: str | os.PathLike[str], program: bytes, sizes: Mapping[str, int]
) -> dict[str, Entry]:
    """The tensors that `program` describes; `sizes` are the bytes of each storage in the file.

    Raises FormatError, and nothing else.
    """
    with uncollected():
        result = _Machine(path, program, sizes).run()
    if not isinstance(result, dict):
        raise FormatError(path, "data.pkl", _kind(result), "a dict of tensors by name", "bad-type")
    if len(result) > TENSOR_LIMIT:
        found = f"{len(result):,} tensors"
        raise FormatError(path, "data.pkl", found, f"at most {TENSOR_LIMIT:,}", "limit")
    for name, entry in result.items():
        where = f'tensor "{one_line(name)}"'
        if problem := name_problem(name):
            raise FormatError(path, where, problem, "a plain name of 1 to 512 bytes", "unsafe")
        if not isinstance(entry, Entry):
            allowed = "tensors only, as model.state_dict() holds: save that alone"
            raise FormatError(path, where, _kind(entry), allowed, "bad-type")
    return result


def _kind(value: object) -> str:
    """A value's name for a message; never its text, which may be without end."""
    if isinstance(value, _Global):
        return f"the class or function {one_line(value.name)}"
    names = {Entry: "a tensor", _Storage: "a bare storage", OrderedDict: "an OrderedDict"}
    return names.get(type(value)) or ("None" if value is None else type(value).__name__)


class _Machine:
    """The stack machine. `_op_` methods are its instructions, one each or one a few."""

    def __init__(self, path: str | os.PathLike[str], data: bytes, sizes: Mapping[str, int]):
        self.path, self.data, self.sizes = path, data, sizes
        self.at = self.begin = 0  # the next byte; where this instruction began
        self.stack: list[object] = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.storages: dict[str, _Storage] = {}

    def run(self) -> object:
        if self.data[:2] != b"\x80\x02":
            raise self.refuse(self.data[:2], "protocol 2, what torch.save writes", "bad-version")
        self.at = 2
        for _ in range(OP_LIMIT):
            self.begin = self.at
            op = self.take(1)[0]
            if op == ord("."):
                break
            instruction = INSTRUCTIONS.get(op)
            if instruction is None:
                what = FOREIGN.get(op, "no part of a state dict")
                found = f"instruction {bytes([op])!r}, {what}"
                raise self.refuse(found, "dicts of tensors", "unsafe")
            instruction(self)
            if len(self.stack) > STACK_LIMIT:
                raise self.refuse("more values at once", f"at most {STACK_LIMIT:,}", "limit")
        else:
            raise self.refuse("more instructions", f"at most {OP_LIMIT:,}", "limit")
        if len(self.stack) != 1 or self.marks:
            raise self.refuse(f"{len(self.stack):,} values at the end", "one", "bad-type")
        if self.at != len(self.data):
            found = f"{len(self.data) - self.at:,} bytes after the end"
            raise self.refuse(found, "none", "trailing")
        return self.stack[0]

    # ---- the parts ----

    def refuse(self, found: object, allowed: str, code: str) -> FormatError:
        return FormatError(self.path, f"data.pkl byte {self.begin:,}", found, allowed, code)

    def take(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.data):
            left = len(self.data) - self.at + size
            raise self.refuse(f"{left:,} bytes left", f"at least {size:,}", "truncated")
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.refuse("too few values", "one more", "bad-type")
        return self.stack.pop()

    def pop_to_mark(self) -> list[object]:
        if not self.marks:
            raise self.refuse("no mark", "a mark before this", "bad-type")
        at = self.marks.pop()
        values = self.stack[at:]
        del self.stack[at:]
        return values

    def put(self, place: int) -> None:
        if place in self.memo:
            raise self.refuse(f"memo place {place:,} again", "each once", "dup-key")
        value = self.pop()
        self.stack.append(value)
        self.memo[place] = value

    def get(self, place: int) -> None:
        value = self.memo.get(place, _Nothing)
        if value is _Nothing:
            raise self.refuse(f"memo place {place:,}", "one that was filled", "missing-field")
        self.stack.append(value)

    def whole(self, value: object) -> int:
        if type(value) is not int or not 0 <= value < 1 << 63:
            found = f"{value}" if type(value) is int else _kind(value)
            raise self.refuse(f"a size of {found}", "0 to 2^63 - 1", "out-of-range")
        return value

    def push_tuple(self, values: list[object]) -> None:
        if len(values) > TUPLE_LIMIT:
            raise self.refuse(f"{len(values):,} items", f"at most {TUPLE_LIMIT}", "limit")
        for value in values:
            if type(value) is tuple and any(type(item) is tuple for item in value):
                raise self.refuse("tuples three deep", "two", "limit")
        self.stack.append(tuple(values))

    def fill(self, values: list[object]) -> None:
        """Put keys and values in turn into the dict on the stack."""
        target = self.pop()
        self.stack.append(target)
        if not isinstance(target, dict) or len(values) % 2:
            raise self.refuse(
                f"{len(values):,} for {_kind(target)}", "pairs for a dict", "bad-type"
            )
        for i in range(0, len(values), 2):
            key = values[i]
            if type(key) is not str:
                raise self.refuse(f"a key that is {_kind(key)}", "a text", "bad-type")
            if key in target:
                raise self.refuse(f"key {one_line(key)!r} twice", "each key once", "dup-key")
            target[key] = values[i + 1]

    def extend(self, values: list[object]) -> None:
        target = self.pop()
        self.stack.append(target)
        if not isinstance(target, list):
            raise self.refuse(_kind(target), "a list", "bad-type")
        target += values

    def protocol(self) -> None:
        raise self.refuse("the protocol a second time", "once, at the beginning", "bad-type")

    def mark(self) -> None:
        if len(self.marks) == MARK_LIMIT:
            raise self.refuse("deeper nesting", f"at most {MARK_LIMIT} levels", "limit")
        self.marks.append(len(self.stack))

    def long(self) -> None:
        size = self.number(1)
        if size > 8:
            raise self.refuse(f"a number of {size} bytes", "at most 8", "limit")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def text(self) -> None:
        raw = self.take(self.number(4))
        try:
            self.stack.append(raw.decode())
        except UnicodeDecodeError:
            raise self.refuse(raw[:40], "UTF-8", "bad-utf8") from None

    def function(self) -> None:
        lines = self.data[self.at : self.at + LINE_LIMIT].split(b"\n", 2)
        if len(lines) < 3:
            raise self.refuse("no two lines", f"a name within {LINE_LIMIT} bytes", "truncated")
        name = b" ".join(lines[:2]).decode("ascii", "replace")
        self.at += len(lines[0]) + len(lines[1]) + 2
        if name not in (ORDERED, TENSOR, PARAMETER) and name not in STORAGES:
            if name.startswith("torch") and name.endswith("Storage"):
                allowed = ", ".join(known.removeprefix("torch ") for known in STORAGES)
                raise self.refuse(name, allowed, "bad-dtype")
            raise self.refuse(f"{name!r}, code to run", "what a state dict is made of", "unsafe")
        self.stack.append(_Global(name))

    def call(self) -> None:
        values, function = self.pop(), self.pop()
        name = function.name if isinstance(function, _Global) else None
        if name == ORDERED and values == ():
            self.stack.append(OrderedDict())
        elif name == TENSOR and type(values) is tuple:
            self.stack.append(self.tensor(values))
        elif name == PARAMETER and type(values) is tuple:
            match values:
                case Entry() as entry, bool(), dict() as hooks if not hooks:
                    self.stack.append(entry)
                case _:
                    raise self.refuse("other arguments", "(tensor, grad, no hooks)", "bad-type")
        else:
            found = f"a call of {_kind(function)} with {_kind(values)}"
            raise self.refuse(found, "a tensor's or OrderedDict's own", "unsafe")

    def build(self) -> None:
        """An attribute of a dict: a state dict has `_metadata`, versions of its modules."""
        state = self.pop()
        target = self.pop()
        plain = type(target) is OrderedDict and type(state) is dict and set(state) <= {"_metadata"}
        if not plain:
            found = f"attributes of {_kind(target)}"
            raise self.refuse(found, "_metadata of an OrderedDict", "unsafe")
        self.stack.append(target)

    def storage(self) -> None:
        match self.pop():
            case "storage", _Global(name), str(key), str(), count if name in STORAGES:
                dtype = STORAGES[name]
            case other:
                allowed = '("storage", type, key, device, count)'
                raise self.refuse(f"a persistent id of {_kind(other)}", allowed, "bad-type")
        if not key.isascii() or not key.isdigit() or len(key) > 20:
            raise self.refuse(f"storage key {one_line(key)!r}", "up to 20 digits", "bad-path")
        if key not in self.sizes:
            raise self.refuse(f"storage {key}", "one that is in the file", "missing-field")
        number = self.whole(count)
        if number * dtype.itemsize != self.sizes[key]:
            found, allowed = f"{number:,} items of {dtype}", f"{self.sizes[key]:,} bytes"
            raise self.refuse(f"storage {key}, {found}", f"{allowed}, as stored", "shape-mismatch")
        found_storage = _Storage(key, dtype, number)
        if self.storages.setdefault(key, found_storage) != found_storage:
            raise self.refuse(f"storage {key} of two types", "one type", "bad-dtype")
        self.stack.append(found_storage)

    def tensor(self, values: tuple[object, ...]) -> Entry:
        match values:
            case _Storage() as storage, offset, tuple(shape), tuple(
                stride
            ), bool(), dict() as hooks:
                pass
            case _:
                allowed = "(storage, offset, size, stride, grad, hooks)"
                found = ", ".join(_kind(value) for value in values)
                raise self.refuse(f"a tensor of ({found})", allowed, "bad-type")
        if hooks:
            raise self.refuse("a tensor with hooks", "none", "unsafe")
        if len(shape) != len(stride):
            found = f"{len(shape)} sizes, {len(stride)} strides"
            raise self.refuse(found, "as many", "shape-mismatch")
        first = self.whole(offset)
        sizes, steps = tuple(map(self.whole, shape)), tuple(map(self.whole, stride))
        # Zeros count as one: torch multiplies the other dimensions for its own strides.
        if math.prod(size or 1 for size in sizes) * storage.dtype.itemsize >= 1 << 63:
            raise self.refuse(f"shape {sizes}", "a size below 2^63", "overflow")
        count = math.prod(sizes)
        last = first + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
        if (last >= storage.count if count else first > storage.count) or count > storage.count:
            found = f"{count:,} items up to {last:,}" if count else f"an offset of {first:,}"
            allowed = f"storage {storage.key}'s {storage.count:,} items"
            raise self.refuse(found, allowed, "out-of-range")
        return Entry(storage.dtype, sizes, steps, first, storage.key)


INSTRUCTIONS: dict[int, Callable[[_Machine], object]] = {
    0x80: _Machine.protocol,
    ord("N"): lambda m: m.stack.append(None),
    0x88: lambda m: m.stack.append(True),
    0x89: lambda m: m.stack.append(False),
    ord("K"): lambda m: m.stack.append(m.number(1)),
    ord("M"): lambda m: m.stack.append(m.number(2)),
    ord("J"): lambda m: m.stack.append(int.from_bytes(m.take(4), "little", signed=True)),
    0x8A: _Machine.long,
    ord("X"): _Machine.text,
    ord(")"): lambda m: m.stack.append(()),
    ord("]"): lambda m: m.stack.append([]),
    ord("}"): lambda m: m.stack.append({}),
    ord("("): _Machine.mark,
    ord("t"): lambda m: m.push_tuple(m.pop_to_mark()),
    0x85: lambda m: m.push_tuple([m.pop()]),
    0x86: lambda m: m.push_tuple([m.pop(), m.pop()][::-1]),
    0x87: lambda m: m.push_tuple([m.pop(), m.pop(), m.pop()][::-1]),
    ord("a"): lambda m: m.extend([m.pop()]),
    ord("e"): lambda m: m.extend(m.pop_to_mark()),
    ord("s"): lambda m: m.fill([m.pop(), m.pop()][::-1]),
    ord("u"): lambda m: m.fill(m.pop_to_mark()),
    ord("q"): lambda m: m.put(m.number(1)),
    ord("r"): lambda m: m.put(m.number(4)),
    ord("h"): lambda m: m.get(m.number(1)),
    ord("j"): lambda m: m.get(m.number(4)),
    ord("c"): _Machine.function,
    ord("R"): _Machine.call,
    ord("b"): _Machine.build,
    ord("Q"): _Machine.storage,
}
