"""Indexes of sharded checkpoints: sound ones, and every way in which one can lie."""

from __future__ import annotations

import json
import random

import pytest

from minift.errors import FormatError
from minift.formats import strict_json, weight_index

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def index(tmp_path, data, name="model.safetensors.index.json"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def test_what_an_index_says(tmp_path):
    homes = {"b": TWO, "a": ONE, "c": TWO}
    found = weight_index.read(
        index(tmp_path, {"metadata": {"total_size": 12}, "weight_map": homes})
    )
    assert found.homes == homes
    assert list(found.homes) == ["b", "a", "c"]
    assert found.files == [ONE, TWO]
    assert found.total == 12
    assert weight_index.read(index(tmp_path, {"weight_map": homes})).total is None
    assert weight_index.read(
        index(tmp_path, {"weight_map": {"a": "w.bin"}}, "pytorch_model.bin.index.json")
    ).files == ["w.bin"]


BAD = [
    (b"", "bad-json"),
    (b"[]", "bad-type"),
    (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "dup-key"),
    ({}, "missing-field"),
    ({"weight_map": {}}, "limit"),
    ({"weight_map": None}, "missing-field"),
    ({"weight_map": [ONE]}, "bad-type"),
    ({"weight_map": {"a": 1}}, "bad-type"),
    ({"weight_map": {"a": None}}, "bad-type"),
    ({"weight_map": {"a": [ONE]}}, "bad-type"),
    ({"weight_map": {"a": ONE}, "metadata": 1}, "bad-type"),
    ({"weight_map": {"a": ONE}, "metadata": {"total_size": "1"}}, "bad-type"),
    ({"weight_map": {"a": ONE}, "metadata": {"total_size": True}}, "bad-type"),
    ({"weight_map": {"a": ONE}, "auto_map": {}}, "unknown-field"),
    ({"weight_map": {str(i): f"{i}.safetensors" for i in range(1001)}}, "limit"),
    (b"null", "bad-type"),
    (b'{"weight_map": {}, "weight_map": {}}', "dup-key"),
    (b'{"weight_map": {"a": "\\ud800.safetensors"}}', "bad-utf8"),
    ({"weight_map": {"a": ONE}, "metadata": {"total_size": [1]}}, "bad-type"),
    ({"weight_map": {"a": ONE}, "metadata": None}, "bad-type"),
    ({"weight_map": "model.safetensors"}, "bad-type"),
    ({"weight_map": {"a": {"file": ONE}}}, "bad-type"),
    ({"weight_map": {str(i): ONE for i in range(30_000)} | {"b": "../x"}}, "bad-path"),
    ({"weight_map": {str(i): f"{i}.bin" for i in range(40_000)}}, "limit"),
    ((b'{"weight_map": ' + b"[" * 1_000_000), "limit"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "code"), BAD, ids=range(len(BAD)))
def test_what_is_no_index(tmp_path, data, code):
    with pytest.raises(FormatError) as caught:
        weight_index.read(index(tmp_path, data))
    assert caught.value.code == code


BAD_NAMES = [
    "", "a/b.safetensors", "/etc/x.safetensors", "../x.safetensors", "..", ".x.safetensors",
    "a\\b.safetensors", "C:x.safetensors", "a\0.safetensors", "a\n.safetensors", "model.bin",
    "model.safetensors.index.json", "model.pt", "x" * 190 + ".safetensors", "*.safetensors",
    "a\u202e.safetensors", '"a".safetensors', "a|b.safetensors", "model",
    "\x1b[2J.safetensors", ".safetensors", "x.safetensors/", "ä" * 95 + ".safetensors",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_shard_is_a_plain_file_of_the_same_format(tmp_path, name):
    with pytest.raises(FormatError) as caught:
        weight_index.read(index(tmp_path, {"weight_map": {"a": ONE, "b": name}}))
    assert caught.value.code == "bad-path"
    assert "\n" not in str(caught.value)


def test_the_limits_at_and_beyond(tmp_path, monkeypatch):
    homes = {str(i): f"{i}.safetensors" for i in range(4)}
    monkeypatch.setattr(weight_index, "SHARD_LIMIT", 4)
    monkeypatch.setattr(weight_index, "TENSOR_LIMIT", 4)
    weight_index.read(index(tmp_path, {"weight_map": homes}))
    with pytest.raises(FormatError, match="5 tensors"):
        weight_index.read(index(tmp_path, {"weight_map": homes | {"5": ONE}}))
    monkeypatch.setattr(weight_index, "TENSOR_LIMIT", 5)
    with pytest.raises(FormatError, match="5 shards"):
        weight_index.read(index(tmp_path, {"weight_map": homes | {"5": ONE}}))
    monkeypatch.setattr(weight_index, "INDEX_LIMIT", 10)
    with pytest.raises(FormatError) as caught:
        weight_index.read(index(tmp_path, {"weight_map": homes}))
    assert caught.value.code == "too-large"


def mutated(seed):
    """An index that was valid once."""
    homes = {f"model.layers.{i}.weight": (ONE, TWO)[i % 2] for i in range(6)}
    data = bytearray(json.dumps({"metadata": {"total_size": 96}, "weight_map": homes}).encode())
    words = [
        b"null",
        b"1e999",
        b"-0",
        b"[]",
        b"{}",
        b'"a":"b",',
        b"../",
        b"/",
        b"\\u0000",
        b'"',
        b"{",
    ]
    for _ in range(seed.randint(1, 3)):
        at = seed.randrange(len(data))
        match seed.randrange(4):
            case 0:
                data[at] = seed.randrange(256)
            case 1:
                del data[at : at + seed.randint(1, 8)]
            case 2:
                data[at:at] = seed.choice(words)
            case 3:
                data[at:at] = data[at : at + seed.randint(1, 60)]
    return bytes(data)


def test_fuzz(tmp_path, monkeypatch):
    seed, refused = random.Random(0), 0
    for _ in range(2000):
        data = mutated(seed)
        monkeypatch.setattr(strict_json, "read_file", lambda path, limit_bytes, data=data: data)
        try:
            found = weight_index.read("model.safetensors.index.json")
        except FormatError:
            refused += 1
            continue
        assert all("/" not in name and name.endswith(".safetensors") for name in found.files)
    assert 1000 < refused < 2000


def hostile():
    """For tests/hostile.py."""
    cases = {f"index {number}": case for number, case in enumerate(BAD)}
    for name in BAD_NAMES:
        cases[f"shard {name!r}"[:60]] = {"weight_map": {"a": ONE, "b": name}}, "bad-path"
    return {
        name: (lambda folder, data=data: weight_index.read(index(folder, data)), code)
        for name, (data, code) in cases.items()
    }
