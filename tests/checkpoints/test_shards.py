"""Weights in several files: equal to the same in one, and refused where they disagree."""

from __future__ import annotations

import json
import os
from functools import partial

import pytest
import torch

from minift.checkpoints import shards
from minift.errors import FormatError
from minift.formats import safetensors

TENSORS = {
    "b.weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "a": torch.arange(5, dtype=torch.bfloat16),
    "c": torch.tensor([True, False, True]),
    "d": torch.tensor(7, dtype=torch.int64),
}
SIZE = 48 + 10 + 3 + 8
INDEX = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}


def write(path, tensors):
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        safetensors.write(path, tensors)


def sharded(tmp_path, end="safetensors", edit=lambda homes, files: None, metadata=None):
    """Two shards and their index; `edit` changes what is listed and what is written."""
    one, two = (f"model-0000{i}-of-00002.{end}" for i in (1, 2))
    homes = {"b.weight": one, "a": two, "c": two, "d": one}
    files = {
        name: {k: TENSORS[k] for k, home in homes.items() if home == name} for name in (one, two)
    }
    edit(homes, files)
    for name, tensors in files.items():
        write(tmp_path / name, tensors)
    index = {
        "metadata": {"total_size": SIZE} if metadata is None else metadata,
        "weight_map": homes,
    }
    path = tmp_path / INDEX[end]
    path.write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("end", ["safetensors", "bin"])
def test_the_same_tensors_as_in_one_file(tmp_path, end):
    file = shards.read(sharded(tmp_path, end))
    assert list(file.tensors) == list(TENSORS)
    assert [path.name[:11] for path in file.files] == ["model-00001", "model-00002"]
    for name, tensor in TENSORS.items():
        assert file.tensors[name].shape == tensor.shape
        assert file.tensors[name].dtype == tensor.dtype
        assert file.tensors[name].kind == str(tensor.dtype).removeprefix("torch.")
        assert torch.equal(file.load(name), tensor)


@pytest.mark.parametrize(
    "total",
    [SIZE, float(SIZE), None, SIZE - 3 + 3 / 8],
    ids=["bytes", "float", "unsaid", "bits for bool"],
)
def test_ways_of_counting_the_total(tmp_path, total):
    shards.read(sharded(tmp_path, metadata={} if total is None else {"total_size": total}))


def test_a_shared_storage_is_counted_once_or_each_time(tmp_path):
    weight = torch.ones(4)
    for total in (16 + 8, 32 + 8):
        torch.save({"in": weight, "out": weight}, tmp_path / "1.bin")
        torch.save({"n": torch.ones(2)}, tmp_path / "2.bin")
        index = tmp_path / INDEX["bin"]
        homes = {"in": "1.bin", "out": "1.bin", "n": "2.bin"}
        index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": homes}))
        file = shards.read(index)
        assert file.load("in").data_ptr() == file.load("out").data_ptr()


def test_wrong_totals(tmp_path):
    for total in (SIZE + 1, 0, -1, 1e300):
        with pytest.raises(FormatError) as caught:
            shards.read(sharded(tmp_path, metadata={"total_size": total}))
        assert caught.value.code == "shape-mismatch"


def unlisted(homes, files):
    del homes["a"]


def absent(homes, files):
    homes["extra"] = next(iter(files))


def twice(homes, files):
    two = list(files)[1]
    files[two] = files[two] | {"b.weight": TENSORS["b.weight"]}


def swapped(homes, files):
    homes["a"], homes["b.weight"] = homes["b.weight"], homes["a"]


DISAGREE = [
    (unlisted, "unknown-field", "a in model-00002-of-00002.safetensors is not listed"),
    (absent, "missing-field", "extra is not in model-00001"),
    (twice, "dup-key", "b.weight is in model-00001-of-00002.safetensors and model-00002"),
    (swapped, "missing-field", "a is in model-00002-of-00002.safetensors, not in model-00001"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "code", "text"), DISAGREE)
def test_index_and_shards_that_disagree(tmp_path, edit, code, text):
    with pytest.raises(FormatError) as caught:
        shards.read(sharded(tmp_path, edit=edit, metadata={}))
    assert caught.value.code == code
    assert text in str(caught.value)


def test_all_disagreements_at_once(tmp_path):
    def edit(homes, files):
        swapped(homes, files)
        absent(homes, files)

    with pytest.raises(FormatError, match="3 tensors elsewhere") as caught:
        shards.read(sharded(tmp_path, edit=edit))
    assert len(str(caught.value).splitlines()) == 4


def test_a_shard_that_is_missing_cut_or_no_tensor_file(tmp_path):
    path = sharded(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    for broken in (data[:-1], b"", b"PK\x03\x04" + data):
        shard.write_bytes(broken)
        with pytest.raises(FormatError):
            shards.read(path)
    shard.unlink()
    with pytest.raises(FormatError) as caught:
        shards.read(path)
    assert caught.value.code == "bad-path"


def test_a_shard_that_is_a_link_stays_in_its_folder(tmp_path):
    place, away = tmp_path / "model", tmp_path / "away"
    place.mkdir()
    away.mkdir()
    path = sharded(place)
    shard = place / "model-00002-of-00002.safetensors"
    os.rename(shard, place / "data.safetensors")
    shard.symlink_to("data.safetensors")
    shards.read(path)
    shard.unlink()
    os.rename(place / "data.safetensors", away / "data.safetensors")
    shard.symlink_to(away / "data.safetensors")
    with pytest.raises(FormatError) as caught:
        shards.read(path)
    assert caught.value.code == "bad-path"


def test_which_weights_of_a_folder_are_taken(tmp_path):
    with pytest.raises(FormatError, match="an empty folder"):
        shards.weights_of(tmp_path)
    with pytest.raises(FormatError, match="No such file"):
        shards.weights_of(tmp_path / "missing")
    write(tmp_path / "pytorch_model.bin", TENSORS)
    file, others = shards.weights_of(tmp_path)
    assert (file.path.name, others) == ("pytorch_model.bin", [])
    index = sharded(tmp_path)
    file, others = shards.weights_of(tmp_path)
    assert (file.path, others) == (index, ["pytorch_model.bin"])
    write(tmp_path / "model.safetensors", TENSORS)
    file, others = shards.weights_of(tmp_path)
    assert file.files == [tmp_path / "model.safetensors"]
    assert others == ["model.safetensors.index.json", "pytorch_model.bin"]
    for name, tensor in TENSORS.items():
        assert torch.equal(file.load(name), tensor)


def test_a_broken_link_is_not_passed_over(tmp_path):
    write(tmp_path / "pytorch_model.bin", TENSORS)
    (tmp_path / "model.safetensors").symlink_to("missing")
    with pytest.raises(FormatError):
        shards.weights_of(tmp_path)


def second_is(make):
    """Shards of which the second is what `make(its path, a folder elsewhere)` leaves there."""

    def attempt(folder):
        place, away = folder / "model", folder / "away"
        place.mkdir()
        away.mkdir()
        index = sharded(place)
        shard = place / "model-00002-of-00002.safetensors"
        make(shard, away)
        shards.read(index)

    return attempt


def linked_to(target):
    def make(shard, away):
        os.rename(shard, away / "w.safetensors")
        shard.symlink_to(target(shard, away))

    return make


def replaced(change):
    return lambda shard, away: shard.write_bytes(change(shard.read_bytes()))


def other_kind(make):
    def instead(shard, away):
        shard.unlink()
        make(shard)

    return instead


def hostile():
    """For tests/hostile.py."""

    def disagreeing(folder, edit, end):
        shards.read(sharded(folder, end, edit, {}))

    cases = {
        f"{edit.__name__}, {end}": (partial(disagreeing, edit=edit, end=end), code)
        for edit, code, _ in DISAGREE
        for end in INDEX
    }
    for total in (SIZE + 1, 0, -1, 1e300, -0.5, 2**63):
        cases[f"total of {total}"] = (
            lambda folder, total=total: shards.read(
                sharded(folder, metadata={"total_size": total})
            ),
            "shape-mismatch",
        )
    first = "model-00001-of-00002.safetensors"
    seconds = {
        "missing": (lambda shard, away: shard.unlink(), "bad-path"),
        "cut": (replaced(lambda data: data[:-1]), "truncated"),
        "empty": (replaced(lambda data: b""), "truncated"),
        "with a byte more": (replaced(lambda data: data + b"\0"), "trailing"),
        "a zip": (replaced(lambda data: b"PK\3\4" + data), "too-large"),
        "a folder": (other_kind(lambda shard: shard.mkdir()), "bad-path"),
        "a pipe": (other_kind(os.mkfifo), "bad-path"),
        "a link out of the folder": (
            linked_to(lambda shard, away: away / "w.safetensors"), "bad-path",
        ),
        "a relative link out": (linked_to(lambda shard, away: "../away/w.safetensors"), "bad-path"),
        "a link to itself": (linked_to(lambda shard, away: shard.name), "bad-path"),
        "a link to the first": (linked_to(lambda shard, away: first), "dup-key"),
        "a dead link": (linked_to(lambda shard, away: "nowhere.safetensors"), "bad-path"),
        "a link to a device": (linked_to(lambda shard, away: "/dev/zero"), "bad-path"),
        "a link to the folder": (linked_to(lambda shard, away: "."), "bad-path"),
        "a copy of the first": (
            lambda shard, away: shard.write_bytes((shard.parent / first).read_bytes()), "dup-key",
        ),
    }  # fmt: skip
    return cases | {
        f"a shard that is {name}": (second_is(make), code) for name, (make, code) in seconds.items()
    }
