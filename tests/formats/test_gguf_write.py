"""GGUF files written: the bytes of the gguf package, read back, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minift.errors import ConfigError, StorageError
from minift.formats import gguf, gguf_write
from minift.formats.gguf_write import KINDS, encode, stored_as, write

GOLDEN = Path(__file__).parents[1] / "golden"
WAVE = torch.from_numpy(np.sin(np.arange(7 * 96, dtype=np.float32) * 0.37).reshape(7, 96) * 0.8)
PAIRS: dict[str, Any] = {
    "general.architecture": "llama",
    "made.by": "gguf 0.19.0",
    "whole": 4_000_000_000,
    "below zero": -7,
    "real": 0.1,
    "yes": True,
    "no": False,
    "text": "Ġa naïve 日本 🙂",
    "texts": ["a", "", "Ġb"],
    "wholes": [1, 2, 300, -1],
    "reals": [0.5, -1.0],
    "bools": [True, False],
}
TENSORS = {f"{kind}.weight": WAVE for kind in KINDS}
TENSORS |= {"vector": WAVE[0, :5], "cube": WAVE[:, :6].reshape(7, 2, 3)}
STORED = {f"{kind}.weight": kind for kind in KINDS} | {"vector": "F32", "cube": "F32"}


def test_the_bytes_of_the_gguf_package() -> None:
    ours = b"".join(bytes(chunk) for chunk in encode(PAIRS, TENSORS, STORED))
    assert ours == (GOLDEN / "gguf_file.gguf").read_bytes()


@pytest.mark.parametrize("piece", [32, 96, 8 << 20])
def test_pieces_change_nothing(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_write, "PIECE", piece)
    test_the_bytes_of_the_gguf_package()


def test_read_back(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", PAIRS, TENSORS, STORED)
    file = gguf.read(tmp_path / "a.gguf")
    expected = PAIRS | {"real": float(np.float32(0.1))} | gguf.MARK
    assert repr(file.metadata) == repr(expected)
    assert {name: entry.kind for name, entry in file.tensors.items()} == STORED
    for name, tensor in TENSORS.items():
        assert file.tensors[name].shape == tuple(tensor.shape)
    for name, dtype in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        assert torch.equal(file.load(f"{name}.weight"), WAVE.to(dtype).float())
    # Half a step, and what float16 takes off the scale of 127 of them.
    steps = WAVE.reshape(-1, 32).abs().amax(1, keepdim=True).expand(-1, 32).reshape(7, 96)
    assert ((file.load("Q8_0.weight") - WAVE).abs() <= steps / 127 * 0.57).all()
    assert ((file.load("Q4_1.weight") - WAVE).abs() <= steps * 2 / 15 * 0.51).all()


def test_any_dtype_and_layout_is_stored(tmp_path: Path) -> None:
    wide = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(2, 32)
    tensors = {"t": wide.T, "b": wide.bfloat16(), "p": torch.nn.Parameter(wide), "0": wide[:0]}
    write(tmp_path / "a.gguf", {}, tensors, {"t": "F32", "b": "Q8_0", "p": "F16", "0": "Q4_0"})
    file = gguf.read(tmp_path / "a.gguf")
    assert torch.equal(file.load("t"), wide.T.float())
    assert torch.equal(file.load("p"), wide.half().float())
    assert file.load("0").shape == (0, 32)
    write(tmp_path / "none.gguf", {"k": 1, "nothing": []}, {}, {})
    assert gguf.read(tmp_path / "none.gguf").metadata == {"k": 1, "nothing": []} | gguf.MARK


def test_what_a_kind_cannot_hold_is_stored_wider() -> None:
    assert stored_as("Q8_0", (5, 64)) == "Q8_0"
    assert stored_as("Q8_0", (64, 33)) == "F16"
    assert stored_as("Q4_0", (64,)) == "F32"
    assert stored_as("BF16", (5, 3)) == "BF16"
    with pytest.raises(ConfigError, match=r'dtype: found "Q6_K", allowed F32, F16, BF16, Q8_0'):
        stored_as("Q6_K", (256, 256))


@pytest.mark.parametrize(("key", "value", "text"), [
    ("k", 1 << 32, "cannot be stored"),
    ("k", -(1 << 31) - 1, "cannot be stored"),
    ("k", [1 << 31], "cannot be stored"),
    ("k", 1e39, "cannot be stored"),
    ("k", "\ud800", "cannot be stored"),
    ("k", "x" * (16 << 20) + "x", "allowed 16,777,216"),
    ("k", None, "NoneType has no place"),
    ("k", [[1]], "list has no place"),
    ("k", [1, "a"], "several types"),
    ("k", [1, True], "several types"),
    ("../k", 1, "not a plain name"),
    ("", 1, "not a plain name"),
])  # fmt: skip
def test_metadata_that_no_file_has(key: str, value: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        encode({key: value}, {}, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "tensor", "text"), [
    ("a/b", torch.zeros(1), "a path"),
    ("i", torch.zeros(1, dtype=torch.int64), "torch.int64"),
    ("r", torch.zeros(1, 1, 1, 1, 1), "5 dimensions"),
])  # fmt: skip
def test_tensors_that_no_file_has(name: str, tensor: torch.Tensor, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        encode({}, {name: tensor}, {name: "F32"})


@pytest.mark.parametrize(("kind", "value", "text"), [
    ("F32", float("nan"), "not finite"),
    ("Q8_0", float("inf"), "not finite"),
    ("F16", 65_520.0, "a weight beyond F16: choose BF16 or F32"),
    ("Q8_0", 1e9, "a scale of Q8_0 beyond float16"),
    ("Q4_1", -1e9, "a scale of Q4_1 beyond float16"),
])  # fmt: skip
def test_weights_that_would_be_lost_leave_no_file(
    kind: str, value: float, text: str, tmp_path: Path
) -> None:
    tensor = torch.zeros(1, 32)
    tensor[0, 3] = value
    with pytest.raises(ConfigError, match=text):
        write(tmp_path / "a.gguf", {}, {"w": tensor}, {"w": kind})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: object, needed: int) -> None:
        assert needed == 4 * 7 * 96
        raise StorageError("x", "needs more")

    monkeypatch.setattr(gguf_write, "free_space", full)
    with pytest.raises(StorageError):
        write(tmp_path / "a.gguf", {}, {"w": WAVE}, {"w": "F32"})
    assert not list(tmp_path.iterdir())
