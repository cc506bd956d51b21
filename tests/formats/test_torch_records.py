"""The interpreter of state dicts: programs written by hand, each instruction used and abused."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minift.errors import FormatError
from minift.formats import torch_records
from minift.formats.torch_records import INSTRUCTIONS, Entry, records

HEAD, STOP = b"\x80\x02", b"."
ORDERED = b"ccollections\nOrderedDict\n)R"
TENSOR, PARAMETER = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n"
SIZES = {"0": 24, "1": 6, "2": 0, "7": 8 << 20}
LONG = 1 << 16  # instructions, or about


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def typed(name: str) -> bytes:
    return f"ctorch\n{name}Storage\n".encode()


def number(value: int) -> bytes:
    """In the instruction for numbers of eight bytes."""
    return b"\x8a\x08" + struct.pack("<q", value)


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(
    key: bytes = text("0"),
    kind: bytes = b"ctorch\nFloatStorage\n",
    count: bytes = b"K\x06",
    tag: bytes = text("storage"),
    device: bytes = text("cpu"),
) -> bytes:
    return b"(" + tag + kind + key + device + count + b"tQ"


def tensor(
    source: bytes | None = None,
    offset: bytes = b"K\0",
    size: bytes = b"K\x02K\x03\x86",
    stride: bytes = b"K\x03K\x01\x86",
    rest: bytes = b"\x89" + ORDERED,
) -> bytes:
    source = storage() if source is None else source
    return TENSOR + b"(" + source + offset + size + stride + rest + b"tR"


def holding(value: bytes, name: str = "w") -> bytes:
    """A whole program: a dict of one value."""
    return HEAD + b"}" + text(name) + value + b"s" + STOP


def spelled(size: bytes, stride: bytes, offset: bytes = b"K\0") -> bytes:
    return holding(tensor(size=size, stride=stride, offset=offset))


W = Entry(torch.float32, (2, 3), (3, 1), 0, "0")
BIG = 1 << 62
GOOD = {
    "one tensor": (holding(tensor()), W),
    "an OrderedDict": (HEAD + ORDERED + text("w") + tensor() + b"s" + STOP, W),
    "a parameter": (holding(PARAMETER + b"(" + tensor() + b"\x88" + ORDERED + b"tR"), W),
    "transposed": (
        spelled(b"K\x03K\x02\x86", b"K\x01K\x03\x86"),
        Entry(torch.float32, (3, 2), (1, 3), 0, "0"),
    ),
    "a scalar at the end": (spelled(b")", b")", b"K\x05"), Entry(torch.float32, (), (), 5, "0")),
    "every second": (
        spelled(b"K\x03\x85", b"K\x02\x85", b"K\x01"), Entry(torch.float32, (3,), (2,), 1, "0"),
    ),
    "one value six times": (spelled(sizes(6), sizes(0)), Entry(torch.float32, (6,), (0,), 0, "0")),
    "empty, of an empty storage": (
        holding(tensor(storage(text("2"), count=b"K\0"), size=sizes(0, 4), stride=sizes(4, 1))),
        Entry(torch.float32, (0, 4), (4, 1), 0, "2"),
    ),
    "rank 8": (
        spelled(sizes(*[1] * 8), sizes(*[1] * 8)),
        Entry(torch.float32, (1,) * 8, (1,) * 8, 0, "0"),
    ),
    "bfloat16": (
        holding(
            tensor(storage(text("1"), typed("BFloat16"), b"K\x03"), size=sizes(3), stride=sizes(1))
        ),
        Entry(torch.bfloat16, (3,), (1,), 0, "1"),
    ),
    "numbers of two and four bytes": (
        holding(tensor(storage(text("7"), count=b"J\0\0\x20\0"), b"M\0\x01", sizes(5), sizes(9))),
        Entry(torch.float32, (5,), (9,), 256, "7"),
    ),
    "through the memo": (
        HEAD + b"}" + text("v") + tensor() + b"r\0\0\0\1q\x09s" + text("w") + b"h\x09s"
        + text("u") + b"j\0\0\0\1s" + STOP,
        W,
    ),
    "modules' versions": (
        HEAD + ORDERED + b"(" + text("w") + tensor() + b"u}" + text("_metadata") + ORDERED
        + text("") + b"}" + text("version") + b"K\x01sssb" + STOP,
        W,
    ),
    "no tensors": (HEAD + b"}" + STOP, None),
}  # fmt: skip
LIST = b"]"
BAD = {
    "nothing": (b"", "bad-version"),
    "protocol 1": (b"\x80\x01}.", "bad-version"),
    "protocol 4": (b"\x80\x04}.", "bad-version"),
    "no protocol": (b"}.", "bad-version"),
    "the protocol twice": (HEAD + HEAD + b"}.", "bad-type"),
    "no end": (HEAD + b"}", "truncated"),
    "bytes after the end": (HEAD + b"}.}", "trailing"),
    "a second program": (HEAD + b"}." + HEAD + b"}.", "trailing"),
    "no value at the end": (HEAD + STOP, "bad-type"),
    "two values at the end": (HEAD + b"}}.", "bad-type"),
    "a mark at the end": (HEAD + b"}(.", "bad-type"),
    "an instruction that is none": (HEAD + b"\xff.", "unsafe"),
    "a float": (holding(b"G" + bytes(8)), "unsafe"),
    "a float in text": (holding(b"F1\n"), "unsafe"),
    "an integer in text": (holding(b"I1\n"), "unsafe"),
    "a long in text": (holding(b"L1L\n"), "unsafe"),
    "a long of 4 bytes of length": (holding(b"\x8b\xff\xff\xff\x7f"), "unsafe"),
    "a byte text of Python 2": (holding(b"U\x01a"), "unsafe"),
    "a quoted text": (holding(b"S'a'\n"), "unsafe"),
    "bytes": (holding(b"C\x01a"), "unsafe"),
    "a text of 8 bytes of length": (holding(b"\x8d" + b"\xff" * 8), "unsafe"),
    "a bytearray": (holding(b"\x96" + b"\xff" * 8), "unsafe"),
    "a set": (holding(b"\x8f"), "unsafe"),
    "a frame": (HEAD + b"\x95" + bytes(8) + b"}.", "unsafe"),
    "a memo of the next place": (HEAD + b"}\x94.", "unsafe"),
    "a function named on the stack": (holding(text("os") + text("system") + b"\x93"), "unsafe"),
    "an object, the old way": (holding(b"(ios\nsystem\n"), "unsafe"),
    "an object of a class on the stack": (holding(b"(" + ORDERED[:-2] + b"o"), "unsafe"),
    "a new object": (holding(ORDERED[:-2] + b")\x81"), "unsafe"),
    "a new object with names": (holding(ORDERED[:-2] + b")}\x92"), "unsafe"),
    "a registered class": (holding(b"\x82\x01"), "unsafe"),
    "a persistent id in text": (holding(b"Pstorage\n"), "unsafe"),
    "a value dropped": (HEAD + b"}N0.", "unsafe"),
    "values dropped": (HEAD + b"}(N1.", "unsafe"),
    "a value doubled": (HEAD + b"}2.", "unsafe"),
    "a buffer of another file": (holding(b"\x97"), "unsafe"),
    "os.system": (holding(b"cos\nsystem\n" + text("true") + b"\x85R"), "unsafe"),
    "builtins.eval": (holding(b"cbuiltins\neval\n" + text("1") + b"\x85R"), "unsafe"),
    "a function not called": (holding(b"cposix\nsystem\n"), "unsafe"),
    "a function through a dot": (holding(TENSOR[:-1] + b".__globals__\n"), "unsafe"),
    "a name in two parts": (holding(b"ctorch\n_utils _rebuild_tensor_v2\n"), "unsafe"),
    "a name that is not ASCII": (holding("cö\nx\n".encode()), "unsafe"),
    "a name without end": (HEAD + b"c" + b"a" * 1000, "truncated"),
    "a name of one line": (HEAD + b"cos\n.", "truncated"),
    "a tensor of another kind": (holding(b"ctorch._utils\n_rebuild_sparse_tensor\n)R"), "unsafe"),
    "a quantised tensor": (holding(b"ctorch._utils\n_rebuild_qtensor\n)R"), "unsafe"),
    "a tensor by other arguments": (holding(b"ctorch._utils\n_rebuild_tensor_v3\n)R"), "unsafe"),
    "a subclass": (holding(b"ctorch._tensor\n_rebuild_from_type_v2\n)R"), "unsafe"),
    "an array of numpy": (holding(b"cnumpy.core.multiarray\n_reconstruct\n)R"), "unsafe"),
    "a device": (holding(b"ctorch\ndevice\n" + text("cpu") + b"\x85R"), "unsafe"),
    "a size": (holding(b"ctorch\nSize\n)R"), "unsafe"),
    "a quantised storage": (holding(tensor(storage(kind=typed("QInt8")))), "bad-dtype"),
    "a complex storage": (holding(tensor(storage(kind=typed("ComplexFloat")))), "bad-dtype"),
    "a storage of bytes": (holding(b"ctorch.storage\nUntypedStorage\n"), "bad-dtype"),
    "a storage of the GPU": (holding(b"ctorch.cuda\nFloatStorage\n"), "bad-dtype"),
    "a call of a dict": (holding(b"})R"), "unsafe"),
    "a call of a text": (holding(text("x") + b")R"), "unsafe"),
    "a call of a storage type": (holding(b"ctorch\nFloatStorage\n)R"), "unsafe"),
    "a call of nothing": (HEAD + b")R.", "bad-type"),
    "an OrderedDict of something": (holding(ORDERED[:-2] + b"(Nt" + b"R"), "unsafe"),
    "an OrderedDict of a list": (holding(ORDERED[:-2] + b"]R"), "unsafe"),
    "a tensor of a dict": (holding(TENSOR + b"}R"), "unsafe"),
    "a parameter of nothing": (holding(PARAMETER + b")R"), "bad-type"),
    "a parameter of None": (holding(PARAMETER + b"(N\x88" + ORDERED + b"tR"), "bad-type"),
    "a parameter with hooks": (
        holding(PARAMETER + b"(" + tensor() + b"\x88}" + text("a") + b"Ns" + b"tR"), "bad-type",
    ),
    "attributes of a tensor": (holding(tensor() + b"}b"), "unsafe"),
    "attributes of a plain dict": (holding(b"}}b"), "unsafe"),
    "attributes of a function": (holding(TENSOR + b"}b"), "unsafe"),
    "attributes that are no dict": (holding(ORDERED + b"Nb"), "unsafe"),
    "attributes that are a pair": (holding(ORDERED + b"}}\x86b"), "unsafe"),
    "another attribute": (holding(ORDERED + b"}" + text("__class__") + b"Nsb"), "unsafe"),
    "attributes of nothing": (HEAD + b"}b.", "bad-type"),
    "a memo place not filled": (HEAD + b"h\x01.", "missing-field"),
    "a far memo place not filled": (HEAD + b"j\xff\xff\xff\xff.", "missing-field"),
    "a memo place filled twice": (HEAD + b"}q\0q\0.", "dup-key"),
    "a memo place cut": (HEAD + b"}r\0\0", "truncated"),
    "nothing put in the memo": (HEAD + b"q\0.", "bad-type"),
    "a mark put in the memo": (HEAD + b"(q\0.", "bad-type"),
    "a tuple without a mark": (HEAD + b"t.", "bad-type"),
    "a tuple of one of none": (HEAD + b"\x85.", "bad-type"),
    "a tuple of two of one": (HEAD + b"N\x86.", "bad-type"),
    "a tuple of three across a mark": (HEAD + b"NN(N\x87.", "bad-type"),
    "a tuple of 9": (holding(b"(" + b"N" * 9 + b"t"), "limit"),
    "tuples three deep": (holding(b")\x85\x85\x85"), "limit"),
    "tuples three deep, by the memo": (holding(b")\x85q\0h\0\x86h\0\x86"), "limit"),
    "65 marks": (HEAD + b"(" * 65, "limit"),
    "append to a dict": (HEAD + b"}Na.", "bad-type"),
    "append to nothing": (HEAD + b"Na.", "bad-type"),
    "append across a mark": (HEAD + b"](Na.", "bad-type"),
    "appends without a mark": (HEAD + b"]Ne.", "bad-type"),
    "appends to a tuple": (HEAD + b")(Ne.", "bad-type"),
    "items of a list": (HEAD + b"]NNs.", "bad-type"),
    "items of a tensor": (holding(tensor() + text("a") + b"Ns"), "bad-type"),
    "an odd number of items": (HEAD + b"}(" + text("a") + b"u.", "bad-type"),
    "items without a mark": (HEAD + b"}" + text("a") + b"Nu.", "bad-type"),
    "a key that is a number": (HEAD + b"}K\x01Ns.", "bad-type"),
    "a key that is a tuple": (HEAD + b"})Ns.", "bad-type"),
    "a key that is a list": (HEAD + b"}]Ns.", "bad-type"),
    "a key that is a tensor": (HEAD + b"}" + tensor() + b"Ns.", "bad-type"),
    "a key that is True": (HEAD + b"}\x88Ns.", "bad-type"),
    "a key twice": (HEAD + b"}(" + (text("a") + b"N") * 2 + b"u.", "dup-key"),
    "a key twice, apart": (HEAD + b"}" + (text("a") + b"Ns") * 2 + b".", "dup-key"),
    "a text longer than the file": (HEAD + b"}X\xff\xff\xff\xffa", "truncated"),
    "a text of 2 GB": (HEAD + b"}X\xff\xff\xff\x7fa", "truncated"),
    "a text that is not UTF-8": (HEAD + b"}X\x01\0\0\0\xffNs.", "bad-utf8"),
    "a text with a lone surrogate": (HEAD + b"}X\x03\0\0\0\xed\xa0\x80Ns.", "bad-utf8"),
    "a number of 9 bytes": (holding(b"\x8a\x09" + bytes(9)), "limit"),
    "a number of 255 bytes": (holding(b"\x8a\xff" + bytes(255)), "limit"),
    "a number cut": (HEAD + b"\x8a\x08\0", "truncated"),
    "a list": (HEAD + b"].", "bad-type"),
    "None": (HEAD + b"N.", "bad-type"),
    "a tensor alone": (HEAD + tensor() + STOP, "bad-type"),
    "a function alone": (HEAD + TENSOR + STOP, "bad-type"),
    "a number among the tensors": (holding(b"K\x01", "epoch"), "bad-type"),
    "a dict of tensors inside": (
        holding(b"}" + text("w") + tensor() + b"s", "state_dict"), "bad-type",
    ),
    "a dict that holds itself": (HEAD + b"}q\0" + text("w") + b"h\0s.", "bad-type"),
    "a list that holds itself": (holding(b"]q\0h\0a"), "bad-type"),
    "a bare storage": (holding(storage()), "bad-type"),
    "a storage type": (holding(b"ctorch\nFloatStorage\n"), "bad-type"),
    "an empty name": (holding(tensor(), ""), "unsafe"),
    "a name of 513 bytes": (holding(tensor(), "n" * 513), "unsafe"),
    "a name that is a path": (holding(tensor(), "../w"), "unsafe"),
    "a name with a line end": (holding(tensor(), "a\nb"), "unsafe"),
    "a persistent id of None": (holding(b"NQ"), "bad-type"),
    "a persistent id of a text": (holding(text("storage") + b"Q"), "bad-type"),
    "a persistent id of a list": (holding(b"](" + text("storage") + b"eQ"), "bad-type"),
    "a persistent id of two": (holding(text("storage") + b"N\x86Q"), "bad-type"),
    "a persistent id with another tag": (holding(storage(tag=text("module"))), "bad-type"),
    "a storage of no type": (holding(storage(kind=text("torch FloatStorage"))), "bad-type"),
    "a storage of a function": (holding(storage(kind=TENSOR)), "bad-type"),
    "a device that is a number": (holding(storage(device=b"K\0")), "bad-type"),
    "a key that is no text": (holding(storage(b"K\0")), "bad-type"),
    "a storage not in the file": (holding(storage(text("3"))), "missing-field"),
    "a storage's key is a path": (holding(storage(text("../data.pkl"))), "bad-path"),
    "a storage's key is empty": (holding(storage(text(""))), "bad-path"),
    "a storage's key is negative": (holding(storage(text("-0"))), "bad-path"),
    "a storage's key in other digits": (holding(storage(text("٠"))), "bad-path"),
    "a storage's key of 21 digits": (holding(storage(text("0" * 21))), "bad-path"),
    "a storage of too few items": (holding(storage(count=b"K\x05")), "shape-mismatch"),
    "a storage of too many items": (holding(storage(count=b"K\x07")), "shape-mismatch"),
    "a storage of another width": (holding(storage(kind=typed("Double"))), "shape-mismatch"),
    "a storage of -1 items": (holding(storage(count=number(-1))), "out-of-range"),
    "a storage of -2^63 items": (holding(storage(count=number(-(1 << 63)))), "out-of-range"),
    "a storage of 2^62 + 6 items": (holding(storage(count=number(BIG + 6))), "shape-mismatch"),
    "a storage of True items": (holding(storage(count=b"\x88")), "out-of-range"),
    "a storage of None items": (holding(storage(count=b"N")), "out-of-range"),
    "a storage of two types": (
        HEAD + b"}" + text("a") + tensor() + b"s" + text("b")
        + tensor(storage(kind=b"ctorch\nIntStorage\n")) + b"s.", "bad-dtype",
    ),
    "a tensor of None": (holding(tensor(b"N")), "bad-type"),
    "a tensor of a tensor": (holding(tensor(tensor())), "bad-type"),
    "a tensor of five arguments": (holding(tensor(rest=b"\x89")), "bad-type"),
    "a tensor of seven arguments": (holding(tensor(rest=b"\x89" + ORDERED + b"}")), "bad-type"),
    "a tensor whose gradient is 1": (holding(tensor(rest=b"K\x01" + ORDERED)), "bad-type"),
    "a tensor with hooks": (holding(tensor(rest=b"\x89}" + text("a") + b"Ns")), "unsafe"),
    "a shape that is a list": (spelled(b"]", b")"), "bad-type"),
    "a shape that is None": (spelled(b"N", b")"), "bad-type"),
    "a stride that is a number": (spelled(b")", b"K\x01"), "bad-type"),
    "a shape of texts": (spelled(text("2") + b"\x85", sizes(1)), "out-of-range"),
    "a shape of True": (spelled(b"\x88\x85", sizes(1)), "out-of-range"),
    "a shape of a list": (spelled(b"]\x85", sizes(1)), "out-of-range"),
    "a shape of a tuple": (spelled(sizes(2) + b"\x85", sizes(1)), "limit"),
    "rank 9": (spelled(sizes(*[1] * 9), sizes(*[1] * 9)), "limit"),
    "fewer strides than sizes": (spelled(sizes(2, 3), sizes(1)), "shape-mismatch"),
    "a size of -1": (spelled(sizes(-1), sizes(1)), "out-of-range"),
    "sizes of -2 and -3": (spelled(sizes(-2, -3), sizes(3, 1)), "out-of-range"),
    "a stride of -1": (spelled(sizes(6), sizes(-1), b"K\x05"), "out-of-range"),
    "an offset of -1": (spelled(sizes(1), sizes(1), number(-1)), "out-of-range"),
    "an offset of None": (spelled(sizes(1), sizes(1), b"N"), "out-of-range"),
    "an offset of the storage's size": (spelled(b")", b")", b"K\x06"), "out-of-range"),
    "an offset of 2^63 - 1": (spelled(sizes(1), sizes(1), number((1 << 63) - 1)), "out-of-range"),
    "an empty tensor beyond the end": (spelled(sizes(0), sizes(1), b"K\x07"), "out-of-range"),
    "one item too many": (spelled(sizes(7), sizes(1)), "out-of-range"),
    "one item too far": (spelled(sizes(6), sizes(1), b"K\x01"), "out-of-range"),
    "a stride one too wide": (spelled(sizes(2, 3), sizes(4, 1)), "out-of-range"),
    "a stride of 2^62": (spelled(sizes(3), sizes(BIG)), "out-of-range"),
    "a reach that wraps to 0": (spelled(sizes(5), sizes(BIG)), "out-of-range"),
    "a size of 2^40 of one value": (spelled(sizes(1 << 40), sizes(0)), "out-of-range"),
    "seven of six values": (spelled(sizes(7), sizes(0)), "out-of-range"),
    "a product that wraps to 0": (spelled(sizes(1 << 32, 1 << 32), sizes(0, 0)), "overflow"),
    "a product that wraps to 4": (spelled(sizes(BIG + 1, 4), sizes(0, 0)), "overflow"),
    "bytes that wrap": (spelled(sizes(1 << 61), sizes(0)), "overflow"),
    "huge but empty": (spelled(sizes(0, 1 << 40, 1 << 40), sizes(0, 0, 0)), "overflow"),
}  # fmt: skip
TRAPS = {  # each makes many values from few bytes, or many steps
    "dicts": HEAD + b"}" * LONG,
    "dicts in a list": HEAD + LIST + b"}a" * (LONG // 2) + STOP,
    "lists in a list": HEAD + LIST + b"]a" * (LONG // 2) + STOP,
    "OrderedDicts in a list": HEAD + LIST + ORDERED[:-2] + b"q\1ah\1)R" + b"ah\1)R" * (LONG // 5),
    "a list many times in itself": HEAD + b"]q\0" + b"h\0a" * (LONG // 3) + STOP,
    "tuples of one in each other": HEAD + b"N" + b"\x85" * LONG,
    "tuples of one in a list": HEAD + LIST + b"N\x85a" * (LONG // 3) + STOP,
    "tuples of eight in a list": HEAD + LIST + b"(NNNNNNNNta" * (LONG // 11) + STOP,
    "marks": HEAD + b"(" * LONG,
    "empty tuples": HEAD + b"(t" * (LONG // 2),
    "no items, again and again": HEAD + LIST + b"(e" * (LONG // 2) + STOP,
    "memo places": HEAD + b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(LONG // 5)),
    "memo reads": HEAD + b"Nq\0" + b"h\0" * (LONG // 2),
    "numbers": HEAD + LIST + b"\x8a\x03abca" * (LONG // 6) + STOP,
    "texts": HEAD + LIST + b"".join(text(f"{i:06}") + b"a" for i in range(LONG // 12)) + STOP,
    "dicts in each other": HEAD + b"}" + (text("a") + b"}") * LONG + b"s" * LONG + STOP,
}


@pytest.mark.parametrize("name", GOOD)
def test_takes(name: str) -> None:
    program, expected = GOOD[name]
    found = records("w.bin", program, SIZES)
    assert set(found.values()) == ({expected} if expected else set())


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str) -> None:
    program, code = BAD[name]
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            records("w.bin", program, SIZES)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == code
    assert str(caught.value).startswith("w.bin: ")
    assert "\n" not in str(caught.value)
    assert peak < 1 << 20


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_costs_in_proportion_to_its_bytes(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            records("w.bin", TRAPS[name], {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < (1 << 20) + 72 * len(TRAPS[name])


def test_every_instruction_is_used_by_a_good_program() -> None:
    """No instruction is known that no state dict needs; the lists alone are for the message."""
    used = set()

    def noted(op, instruction):
        return lambda machine: (used.add(op), instruction(machine))

    kept = dict(INSTRUCTIONS)
    try:
        INSTRUCTIONS.update({op: noted(op, call) for op, call in kept.items()})
        for program, _ in GOOD.values():
            records("w.bin", program, SIZES)
    finally:
        INSTRUCTIONS.update(kept)
    assert set(kept) - used == {0x80, ord("N"), ord("]"), ord("a"), ord("e"), 0x87}


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    two = HEAD + b"}(" + text("a") + tensor() + text("b") + tensor() + b"u" + STOP
    monkeypatch.setattr(torch_records, "TENSOR_LIMIT", 2)
    assert len(records("w.bin", two, SIZES)) == 2
    monkeypatch.setattr(torch_records, "TENSOR_LIMIT", 1)
    assert refused(two) == "limit"
    monkeypatch.undo()
    five = HEAD + b"}" + text("a") + b"Ns" + STOP
    monkeypatch.setattr(torch_records, "OP_LIMIT", 5)
    assert refused(five) == "bad-type"  # None is no tensor, but it was read to the end
    monkeypatch.setattr(torch_records, "OP_LIMIT", 4)
    assert refused(five) == "limit"
    monkeypatch.undo()
    stacked = HEAD + b"N" * 3 + b"\x87" + b"\x85" + STOP
    monkeypatch.setattr(torch_records, "STACK_LIMIT", 3)
    assert refused(stacked) == "bad-type"  # a tuple, but not too many values
    monkeypatch.setattr(torch_records, "STACK_LIMIT", 2)
    assert refused(stacked) == "limit"
    monkeypatch.undo()
    assert refused(HEAD + b"(" * 64 + STOP) == "bad-type"


def refused(program: bytes) -> str:
    with pytest.raises(FormatError) as caught:
        records("w.bin", program, SIZES)
    return caught.value.code


def test_the_message_says_what_to_do() -> None:
    with pytest.raises(FormatError, match=r'tensor "state_dict": found dict, allowed tensors only'):
        records("w.bin", BAD["a dict of tensors inside"][0], SIZES)
    with pytest.raises(FormatError, match=r"os system.*code to run"):
        records("w.bin", BAD["os.system"][0], SIZES)


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""
    return {
        name: (lambda folder, program=program: records("w.bin", program, SIZES), code)
        for name, (program, code) in BAD.items()
    }
