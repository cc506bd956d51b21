"""Blocks written: the bits of the gguf package (golden file), and by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.kernels.quantized import quantize as module
from minift.kernels.quantized.quantize import PACK, quantize
from minift.kernels.quantized.reference import dequantize

GOLDEN = Path(__file__).parents[2] / "golden" / "gguf_blocks.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("chunk", [1, 7 * 32, 1 << 20])
def test_same_bits_as_gguf(
    golden: dict[str, np.ndarray], kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    found = quantize(kind, torch.from_numpy(golden["input"]))
    assert found.dtype == torch.uint8
    assert (found.numpy() == golden[f"{kind}.blocks"]).all()


@pytest.mark.parametrize("kind", PACK)
def test_blocks_are_quantised_to_themselves(golden: dict[str, np.ndarray], kind: str) -> None:
    """The sine that gguf quantised, read and quantised again: the same weights."""
    raw = torch.from_numpy(golden[f"{kind}.sine.raw"])
    values = dequantize(kind, raw)
    again = dequantize(kind, quantize(kind, values))
    step = values.abs().max() / (127 if kind == "Q8_0" else 7)
    assert (again - values).abs().max() <= step * 0.51


def test_by_hand() -> None:
    w = torch.tensor([[127.0, 0.5, -0.5, 1.5, -1.5, 2.4, -2.6, -127.0] + [0.0] * 24])
    expected = struct.pack("<e32b", 1.0, 127, 1, -1, 2, -2, 2, -3, -127, *[0] * 24)
    assert quantize("Q8_0", w).numpy().tobytes() == expected
    # d is 8 / -8: the weight of -1 is q 9, the largest is q 0, and the -8 would be q 16.
    w = torch.tensor([[8.0] + [-1.0] * 15 + [-8.0] + [0.0] * 15])
    expected = struct.pack("<e", -1.0) + bytes([0xF0] + [0x89] * 15)
    assert quantize("Q4_0", w).numpy().tobytes() == expected
    w = torch.tensor([[1.0, 16.0] + [5.4] * 14 + [3.5] * 16])
    expected = struct.pack("<ee", 1.0, 1.0) + bytes([0x30, 0x3F] + [0x34] * 14)
    assert quantize("Q4_1", w).numpy().tobytes() == expected


@pytest.mark.parametrize("kind", PACK)
def test_blocks_too_small_for_float16_are_zeros(kind: str) -> None:
    w = torch.linspace(-1e-42, 1e-42, 64).reshape(2, 32)
    w[1] = 0
    assert not dequantize(kind, quantize(kind, w)).any()


@pytest.mark.parametrize("kind", PACK)
def test_a_scale_beyond_float16_is_an_error(kind: str) -> None:
    with pytest.raises(OverflowError):
        quantize(kind, torch.linspace(-1e8, 1e8, 32))


def test_shapes_and_dtypes() -> None:
    w = torch.linspace(-1, 1, 192).reshape(2, 3, 32)
    assert quantize("Q8_0", w).shape == (2, 3, 34)
    assert quantize("Q4_1", w[:0]).shape == (0, 3, 20)
    assert quantize("Q4_0", w.reshape(2, 96)).shape == (2, 54)
    half = w.to(torch.bfloat16)
    assert torch.equal(quantize("Q8_0", half), quantize("Q8_0", half.float()))
