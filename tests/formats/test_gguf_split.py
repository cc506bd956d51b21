"""GGUF models in parts: any part opens the whole, and names, keys and parts must agree."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from minift.checkpoints import gguf_model
from minift.checkpoints.open import headers, load, survey
from minift.cli.info import describe
from minift.errors import ConfigError, FormatError
from minift.formats import gguf
from minift.formats.gguf_split import models_in, read
from minift.formats.gguf_write import write
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.tokenizers.byte_bpe import ByteBPE

I32, U16 = 5, 2


def parts(folder: Path, count: int = 3, name: str = "m", **changes: Any) -> list[Path]:
    """A model of 4 tensors in `count` files, the first of which has none."""
    tensors = {f"t{n}": torch.arange(4.0) + n for n in range(4)}
    held: list[dict[str, torch.Tensor]] = [{} for _ in range(count)]
    for n, (key, tensor) in enumerate(tensors.items()):
        held[1 + n % (count - 1)][key] = tensor
    files = []
    for n, some in enumerate(held):
        keys = {"split.no": n, "split.count": count, "split.tensors.count": 4}
        keys |= changes.get(f"part{n}", {})
        metadata = {"general.architecture": "llama"} if n == 0 else {}
        metadata |= {key: value for key, value in keys.items() if value is not None}
        files.append(folder / f"{name}-{n + 1:05}-of-{count:05}.gguf")
        write(files[-1], metadata, some, dict.fromkeys(some, "F32"))
    return files


@pytest.mark.parametrize("n", range(3))
def test_any_part_opens_the_whole(tmp_path: Path, n: int) -> None:
    files = parts(tmp_path)
    found = read(files[n])
    assert found.metadata["general.architecture"] == "llama"
    assert (found.path, found.files) == (files[0], files)
    assert sorted(found.tensors) == ["t0", "t1", "t2", "t3"]
    assert found.load("t2").tolist() == [2, 3, 4, 5]


def test_the_folder_of_parts_is_one_model(tmp_path: Path) -> None:
    files = parts(tmp_path)
    assert models_in(tmp_path) == files[:1]
    others = parts(tmp_path, 2, "other")
    (tmp_path / "alone.gguf").write_bytes(b"")
    assert models_in(tmp_path) == [tmp_path / "alone.gguf", files[0], others[0]]
    with pytest.raises(ConfigError, match=r"holds 3 models, .*m-00001-of-00003.gguf"):
        headers(tmp_path)
    files[0].unlink()
    assert models_in(tmp_path)[1] == files[1]


def split(path: Path, folder: Path) -> list[Path]:
    """A whole model in two parts, as the tool of llama.cpp cuts it."""
    file = gguf.read(path)
    names = list(file.tensors)
    made = []
    for n, some in enumerate((names[:3], names[3:])):
        keys = {"split.no": n, "split.count": 2, "split.tensors.count": len(names)}
        metadata = {**(file.metadata if n == 0 else {}), **keys}
        made.append(folder / f"model-{n + 1:05}-of-00002.gguf")
        kinds = {name: file.tensors[name].kind for name in some}
        write(made[-1], metadata, {name: file.load(name) for name in some}, kinds)
    return made


def test_a_model_in_parts_is_the_model(tmp_path: Path, tiny_tokenizer: ByteBPE) -> None:
    config = ModelConfig(
        family="llama", vocab=tiny_tokenizer.vocab_size, dim=64, layers=2, heads=4, kv_heads=2,
        head_dim=16, ff=96, context=128,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config, "models/small")
    alone = tmp_path / "alone.gguf"
    gguf_model.write(model, tiny_tokenizer, alone, "Q8_0")
    (tmp_path / "parts").mkdir()
    made = split(alone, tmp_path / "parts")
    whole, tokenizer = load(alone)
    for name in (made[0], made[1], tmp_path / "parts"):
        model, other = load(name)
        assert other.encode("two words") == tokenizer.encode("two words")
        for one, two in zip(model.parameters(), whole.parameters(), strict=True):
            assert torch.equal(one, two)
        assert survey(name).files == made
        assert describe(survey(name)).splitlines()[0].endswith(" in 2 files")
    kept = load(made[1], base="gguf")[0]
    ids = torch.arange(5)[None]
    assert torch.allclose(kept(ids), load(alone, base="gguf")[0](ids))


LIES: list[tuple[dict[str, Any], str, str]] = [
    ({"part0": {"split.no": 1}}, "a name that ends in -00002-of-00003.gguf", "bad-path"),
    ({"part0": {"split.no": None}}, "a name that ends in -00000", "bad-path"),
    ({"part0": {"split.count": 2}}, "-00001-of-00002.gguf", "bad-path"),
    ({"part0": {"split.count": 60_000}}, "at most 1,000", "limit"),
    ({"part0": {"split.count": "3"}}, "a whole number", "bad-type"),
    ({"part0": {"split.count": 3.0}}, "a whole number", "bad-type"),
    ({"part0": {"split.no": True}}, "a whole number", "bad-type"),
    ({"part1": {"split.no": 2}}, "1, as its name", "shape-mismatch"),
    ({"part1": {"split.count": None}}, "3, as its name", "shape-mismatch"),
    ({"part2": {"split.count": 4}}, "3, as its name", "shape-mismatch"),
    ({"part2": {"split.tensors.count": 5}}, "4, as its name", "shape-mismatch"),
    (
        {f"part{n}": {"split.tensors.count": 5} for n in range(3)},
        "4, the tensors",
        "shape-mismatch",
    ),
    ({f"part{n}": {"split.tensors.count": -1} for n in range(3)}, "4, the", "shape-mismatch"),
]


def attempt(folder: Path, changes: dict[str, Any]) -> None:
    read(parts(folder, **changes)[0])


@pytest.mark.parametrize(("changes", "text", "code"), LIES)
def test_parts_that_disagree_are_refused(
    tmp_path: Path, changes: dict[str, Any], text: str, code: str
) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        attempt(tmp_path, changes)
    assert caught.value.code == code


def missing(folder: Path, n: int) -> None:
    files = parts(folder)
    files[n].unlink()
    read(files[(n + 1) % 3])


def twice(folder: Path) -> None:
    files = parts(folder)
    raw = files[1].read_bytes()
    number = raw.index(b"split.no") + len("split.no")
    kind = struct.unpack("<I", raw[number : number + 4])[0]
    width = {U16: 2}.get(kind, 4)
    at = number + 4
    changed = raw[:at] + (2).to_bytes(width, "little") + raw[at + width :]
    files[2].write_bytes(changed)
    read(files[0])


def renamed(folder: Path) -> None:
    read(parts(folder)[0].rename(folder / "model.gguf"))


OTHER: list[tuple[Callable[[Path], object], str, str]] = [
    *(
        (partial(missing, n=n), f"no m-0000{n + 1}-of-00003.gguf", "missing-field")
        for n in range(3)
    ),
    (twice, "each once", "dup-key"),
    (renamed, "a name that ends in -00001-of-00003.gguf", "bad-path"),
]


@pytest.mark.parametrize(("case", "text", "code"), OTHER)
def test_parts_that_are_missing_or_there_twice_are_refused(
    tmp_path: Path, case: Callable[[Path], object], text: str, code: str
) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        case(tmp_path)
    assert caught.value.code == code


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""
    cases: dict[str, tuple[Callable[[Path], object], str]] = {
        f"parts {n}": (partial(attempt, changes=changes), code)
        for n, (changes, _, code) in enumerate(LIES)
    }
    return cases | {f"other parts {n}": (case, code) for n, (case, _, code) in enumerate(OTHER)}
