"""Rows of JSON arrays, of lists, of whole documents; marks and columns that are passed over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minift.data import records, rows
from minift.data.read import open_records
from minift.errors import ConfigError, DataError


@pytest.fixture(params=[1, 2, 3, 7, 1 << 18])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks so small that quotes, escapes and brackets stand on both sides of every border."""
    monkeypatch.setattr(rows, "BLOCK", request.param)
    return request.param


@pytest.mark.parametrize("indent", [None, 2])
def test_the_rows_of_an_array(tmp_path: Path, block: int, indent: int | None) -> None:
    texts = ["a", '"', "\\", '\\"', "\\\\", "[{", "}],", "é\n", ", ", '\\\\"]']
    given = [{"text": text, "x": [[text], {text: 1}]} for text in texts]
    path = tmp_path / "a.json"
    path.write_text("\ufeff " + json.dumps(given, indent=indent) + "\n")
    opened = open_records(path)
    assert [opened.row(i) for i in range(len(opened))] == given
    if indent:
        text = path.read_text().split("\n")
        starts = [k for k, line in enumerate(text, 1) if line == "  {"]
        assert [opened.where(i) for i in range(len(opened))] == starts


@pytest.mark.parametrize(
    ("text", "line", "found"),
    [
        ('[{"text": "a"},\n\n{"text": 3}]', 3, "found 3"),
        ('[{"text": "a"},\n3]', 2, "found 3"),
        ('[{"text": "a"},\n]', 2, "nothing before"),
        ('[{"text": "a"},\n,{"text": "b"}]', 2, "nothing before"),
        ('[{"text": "a"}]\n\n[1]', 3, "text after the array"),
        ('[{"text": "a"},\n{"text": "b"', 1, "never closed"),
        ('[{"text": "a"}}', 1, "} where the array ends"),
        ('[{"text": "a"] }', 1, "no JSON"),
        ("[]", None, "no rows"),
        (" ", None, "no rows"),
        ('{"data": [\n{"text": "a"}]}', 1, "no JSON"),
    ],
)
def test_bad_arrays(tmp_path: Path, block: int, text: str, line: int | None, found: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        open_records(path)
    assert caught.value.line == line
    assert found in str(caught.value)


def test_a_json_file_may_have_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert list(open_records(path)) == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"text": "a"}\n'),
        ("a.json", '[{"text": "a"}]'),
        ("a.csv", "text\na\n"),
        ("a.tsv", "text\tn\na\t1\n"),
        ("a.txt", "a\n"),
    ],
)
def test_a_byte_order_mark_is_buffer(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text("\ufeff" + text)
    assert list(open_records(path)) == [{"text": "a"}]


def test_a_nameless_first_column_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(",text,n\n0,a,1\n1,b,2\n")
    opened = open_records(path)
    assert [opened.row(i) for i in range(2)] == [{"text": "a", "n": "1"}, {"text": "b", "n": "2"}]


def test_a_text_file_as_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo\nthree\n")
    assert list(open_records(path, documents="file")) == [{"text": "one\n\ntwo\nthree"}]
    for module in (rows, records):
        monkeypatch.setattr(module, "LINE_LIMIT", 8)
    path.write_text("one\n\ntwo\nthree é ééééé\n")
    pieces = open_records(path, documents="file")
    assert [row["text"] for row in pieces] == ["one", "two", "three é", " éééé"[:4], "éé"]
    assert [pieces.where(i) for i in range(3)] == [1, 3, 4]
    with pytest.raises(ConfigError, match="allowed: paragraphs, file"):
        open_records(path, documents="lines")
    with pytest.raises(ConfigError, match=r"for \.txt files, not \.csv"):
        open_records(tmp_path / "a.csv", documents="file")


def test_a_list_goes_through_the_checks_of_a_file() -> None:
    given = [{"prompt": "a", "completion": "b", "n": 1}, {"text": "c"}]
    opened = open_records(given)
    assert list(opened) == [{"prompt": "a", "completion": "b"}, {"text": "c"}]
    assert opened.row(-1) == {"text": "c"}
    assert [opened.where(i) for i in range(2)] == [1, 2]
    assert opened.sha256 != open_records(given[:1]).sha256 == open_records(given, limit=1).sha256
    assert open_records([{"t": np.int64(3), "u": "x"}], template="{t}", target="u")[0] == {
        "prompt": "3", "completion": " x",
    }  # fmt: skip
    for bad, message in (
        ([*given, {"text": " "}], 'row 3, field "text": found an empty text'),
        ([*given, "text"], 'row 3: found "text", allowed a mapping of fields'),
        ([{"prompt": "a"}], 'row 1, field "completion": found no such field'),
        ([{"text": object()}], 'row 1, field "text": found a object'),
    ):
        with pytest.raises(DataError) as caught:
            open_records(bad)  # type: ignore[arg-type]
        assert message in str(caught.value)
