"""Blocks against the gguf package (golden file), and by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.kernels.quantized import reference
from minift.kernels.quantized.reference import BLOCKS, SERIAL, dequantize, fresh, piece, room

GOLDEN = Path(__file__).parents[2] / "golden" / "gguf_blocks.npz"
SMALL = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")  # blocks of 32
LARGE = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")  # of 256
KINDS = (*SMALL, *LARGE)
SOURCES = [(kind, source) for kind in KINDS for source in ("sane", "random")]
SOURCES += [(kind, "sine") for kind in SMALL]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def test_kinds() -> None:
    assert BLOCKS == {  # ggml.c, type_traits: blck_size and the sizes of the structs
        "Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24),
        "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176),
        "Q6_K": (256, 210),
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "source"), SOURCES)
def test_same_bits_as_gguf(golden: dict[str, np.ndarray], kind: str, source: str) -> None:
    raw, values = golden[f"{kind}.{source}.raw"], golden[f"{kind}.{source}.values"]
    found = dequantize(kind, torch.from_numpy(raw))
    assert found.dtype == torch.float32
    assert found.shape == values.shape
    finite = ~np.isnan(values)
    assert (np.isnan(found.numpy()) == ~finite).all()
    assert (found.numpy().view(np.uint32)[finite] == values.view(np.uint32)[finite]).all()


@pytest.mark.parametrize("chunk", [1, 3 * 32, 14 * 32, 15 * 32, 16 * 32, 5 * 256, 6 * 256])
def test_chunks_change_nothing(
    golden: dict[str, np.ndarray], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "CHUNK", chunk)
    for kind in KINDS:
        flat = torch.from_numpy(golden[f"{kind}.sane.raw"]).reshape(-1)
        expected = torch.from_numpy(golden[f"{kind}.sane.values"]).reshape(-1)
        assert torch.equal(dequantize(kind, flat), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_the_float32_value_rounded(
    golden: dict[str, np.ndarray], dtype: torch.dtype
) -> None:
    for kind in KINDS:
        raw = torch.from_numpy(golden[f"{kind}.sane.raw"])
        expected = torch.from_numpy(golden[f"{kind}.sane.values"]).to(dtype)
        assert torch.equal(dequantize(kind, raw, dtype), expected)


def test_by_hand() -> None:
    q8 = struct.pack("<e32b", 0.5, *range(-16, 16))
    assert dequantize("Q8_0", torch.frombuffer(bytearray(q8), dtype=torch.uint8)).tolist() == [
        i / 2 for i in range(-16, 16)
    ]
    # Byte j holds weight j in its low half and weight j + 16 in its high half.
    packed = bytes((15 - j) << 4 | j for j in range(16))
    q4_0 = struct.pack("<e", 2.0) + packed
    low, high = [2.0 * (j - 8) for j in range(16)], [2.0 * (7 - j) for j in range(16)]
    assert dequantize("Q4_0", torch.frombuffer(bytearray(q4_0), dtype=torch.uint8)).tolist() == (
        low + high
    )
    q4_1 = struct.pack("<ee", 2.0, -1.0) + packed
    low, high = [2.0 * j - 1 for j in range(16)], [2.0 * (15 - j) - 1 for j in range(16)]
    assert dequantize("Q4_1", torch.frombuffer(bytearray(q4_1), dtype=torch.uint8)).tolist() == (
        low + high
    )


def test_fifth_bits_by_hand() -> None:
    """Weight i is i: the nibbles hold i mod 16, and the upper sixteen have their fifth bit set."""
    nibbles = bytes(17 * j for j in range(16))
    q5_0 = struct.pack("<eI", 1.0, 0xFFFF0000) + nibbles
    found = dequantize("Q5_0", torch.frombuffer(bytearray(q5_0), dtype=torch.uint8))
    assert found.tolist() == [*range(-16, 16)]
    q5_1 = struct.pack("<eeI", 1.0, 0.5, 0xFFFF0000) + nibbles
    found = dequantize("Q5_1", torch.frombuffer(bytearray(q5_1), dtype=torch.uint8))
    assert found.tolist() == [i + 0.5 for i in range(32)]


def test_six_bit_scales_by_hand() -> None:
    """Q4_K with every q 1, d 1, m 1: weight = s - t of its part of 32."""
    s, t = [1, 2, 3, 63, 21, 34, 48, 63], [0, 1, 0, 2, 5, 33, 47, 0]
    low = [s[i] | s[i + 4] >> 4 << 6 for i in range(4)]
    least = [t[i] | t[i + 4] >> 4 << 6 for i in range(4)]
    both = [s[i + 4] & 15 | (t[i + 4] & 15) << 4 for i in range(4)]
    block = struct.pack("<ee12B", 1.0, 1.0, *low, *least, *both) + bytes([0x11]) * 128
    found = dequantize("Q4_K", torch.frombuffer(bytearray(block), dtype=torch.uint8))
    assert found.view(8, 32).T.tolist() == [[a - b for a, b in zip(s, t, strict=True)]] * 32


@pytest.mark.parametrize("shape", [(0,), (0, 40), (3, 0), (1, 20), (2, 60)])
def test_shapes(shape: tuple[int, ...]) -> None:
    found = dequantize("Q4_1", torch.zeros(shape, dtype=torch.uint8))
    assert found.shape == (*shape[:-1], shape[-1] // 20 * 32)


@pytest.mark.parametrize("kind", LARGE)
def test_shapes_of_large_blocks(kind: str) -> None:
    weights, size = BLOCKS[kind]
    for rows, blocks in ((0, 1), (1, 0), (2, 3)):
        raw = torch.zeros(rows, blocks * size, dtype=torch.uint8)
        assert dequantize(kind, raw).shape == (rows, blocks * weights)


def test_fresh_memory_is_aligned_and_writable() -> None:
    for size in (0, 1, 7, 100_000):
        tensor = fresh((size, 3), torch.bfloat16)
        assert tensor.shape == (size, 3)
        assert tensor.data_ptr() % 64 == 0 or size == 0
        assert torch.equal(tensor.fill_(2), torch.full((size, 3), 2, dtype=torch.bfloat16))


def test_pieces_are_one_threads_work_on_a_cpu_and_all_elsewhere() -> None:
    cpu, other = torch.device("cpu"), torch.device("meta")
    assert piece(64, 9999, cpu) == SERIAL // 64
    assert piece(SERIAL + 1, 7, cpu) == 1
    assert piece(64, 9999, other) == 9999
    assert piece(64, 0, other) == 1
    for device in (cpu, other):
        assert room((3, 5), torch.bfloat16, device).shape == (3, 5)
        assert room((3, 5), torch.bfloat16, device).device == device
