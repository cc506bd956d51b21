"""Blocks against the gguf package (golden file), and by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.kernels.quantized import reference
from minift.kernels.quantized.reference import BLOCKS, dequantize, fresh

GOLDEN = Path(__file__).parents[2] / "golden" / "gguf_blocks.npz"
KINDS = ("Q8_0", "Q4_0", "Q4_1")


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def test_kinds() -> None:
    assert BLOCKS == {"Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_1": (32, 20)}


@pytest.mark.parametrize("source", ["sine", "random"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_as_gguf(golden: dict[str, np.ndarray], kind: str, source: str) -> None:
    raw, values = golden[f"{kind}.{source}.raw"], golden[f"{kind}.{source}.values"]
    found = dequantize(kind, torch.from_numpy(raw))
    assert found.dtype == torch.float32
    assert found.shape == values.shape
    finite = ~np.isnan(values)
    assert (np.isnan(found.numpy()) == ~finite).all()
    assert (found.numpy().view(np.uint32)[finite] == values.view(np.uint32)[finite]).all()


@pytest.mark.parametrize("chunk", [1, 3, 14, 15, 16])
def test_chunks_change_nothing(
    golden: dict[str, np.ndarray], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "CHUNK", chunk)
    for kind in KINDS:
        flat = torch.from_numpy(golden[f"{kind}.sine.raw"]).reshape(-1)
        expected = torch.from_numpy(golden[f"{kind}.sine.values"]).reshape(-1)
        assert torch.equal(dequantize(kind, flat), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_the_float32_value_rounded(
    golden: dict[str, np.ndarray], dtype: torch.dtype
) -> None:
    for kind in KINDS:
        raw = torch.from_numpy(golden[f"{kind}.sine.raw"])
        expected = torch.from_numpy(golden[f"{kind}.sine.values"]).to(dtype)
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


@pytest.mark.parametrize("shape", [(0,), (0, 40), (3, 0), (1, 20), (2, 60)])
def test_shapes(shape: tuple[int, ...]) -> None:
    found = dequantize("Q4_1", torch.zeros(shape, dtype=torch.uint8))
    assert found.shape == (*shape[:-1], shape[-1] // 20 * 32)


def test_fresh_memory_is_aligned_and_writable() -> None:
    for size in (0, 1, 7, 100_000):
        tensor = fresh((size, 3), torch.bfloat16)
        assert tensor.shape == (size, 3)
        assert tensor.data_ptr() % 64 == 0 or size == 0
        assert torch.equal(tensor.fill_(2), torch.full((size, 3), 2, dtype=torch.bfloat16))
