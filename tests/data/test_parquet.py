"""Parquet, with pyarrow and without it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from minift.data import parquet
from minift.data.read import open_records
from minift.errors import ConfigError, DataError


def test_without_pyarrow_the_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow: pip install 'minift\[parquet\]'$"):
        open_records(tmp_path / "a.parquet")


def test_row_groups_are_read_as_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    path = tmp_path / "a.parquet"
    turns = [
        [{"from": "human", "value": f"q {i}"}, {"from": "gpt", "value": "a"}] for i in range(9)
    ]
    files.write_table(arrow.table({"conversations": turns}), path, row_group_size=4)
    monkeypatch.setattr(parquet, "ROOM", 0)
    opened = open_records(path)
    assert [opened[i]["messages"][0]["content"] for i in (8, 0, 4, -1)] == [
        "q 8", "q 0", "q 4", "q 8",
    ]  # fmt: skip
    assert len(open_records(path, limit=5)) == 5
    files.write_table(arrow.table({"text": ["a", None]}), path)
    with pytest.raises(DataError, match=r'a\.parquet row 2, field "text": found null'):
        open_records(path)
    path.write_bytes(b"PAR1" + bytes(40))
    with pytest.raises(DataError, match="allowed a Parquet file"):
        open_records(path)
    with pytest.raises(ConfigError, match="no such file"):
        open_records(tmp_path / "b.parquet")


def test_a_file_that_changes_while_it_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    path = tmp_path / "a.parquet"
    files.write_table(arrow.table({"text": ["a"] * 9}), path, row_group_size=4)
    monkeypatch.setattr(parquet, "ROOM", 0)
    opened = open_records(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="changed while it was in use"):
        opened[8]
