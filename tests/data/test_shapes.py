"""What the fields of a first row decide, and what an error suggests for others."""

from __future__ import annotations

from pathlib import Path

import pytest

from minift.data.read import open_records
from minift.data.shapes import suggestion
from minift.errors import ConfigError, DataError, Notice


@pytest.mark.parametrize(
    ("columns", "flags"),
    [
        (["review", "stars"], "--template '{review}' --target stars"),
        (
            ["instruction", "input", "output"],
            "--template '{instruction}\\n{input}' --target output",
        ),
        (["id", "question", "answer"], "--template '{question}' --target answer"),
        (["prompt", "response"], "--template '{prompt}' --target response"),
        (["a", "b"], "--template '{a}' --target b"),
        (["a"], None),
        (["a", "b", "c", "d"], None),
    ],
)
def test_a_template_is_suggested(columns: list[str], flags: str | None) -> None:
    assert suggestion(columns) == (f"; try {flags}" if flags else "")


def test_a_table_without_text_says_what_would_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("review,stars\nfine,5\n")
    with pytest.raises(DataError, match=r"or text; try --template '{review}' --target stars$"):
        open_records(path)
    expected = "^no column text; yours: review, stars; try --template '{review}' --target stars$"
    with pytest.raises(ConfigError, match=expected):
        open_records(path, template="{text}", target="label", labels=("1", "5"))


def test_a_label_that_nobody_reads_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nfine,5\n")
    with pytest.warns(Notice, match="reads the column text alone, not label"):
        assert open_records(path)[0] == {"text": "fine"}


def test_numbers_that_python_would_change_are_text_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long = "1" * 30
    path.write_text(f'{{"text": "a", "id": {long}, "x": [NaN, -Infinity, 1e999], "label": 1.0}}\n')
    with pytest.warns(Notice, match="not label"):
        assert open_records(path)[0] == {"text": "a"}
    assert open_records(path, template="{id}", target="text")[0]["prompt"] == long
    path.write_text('{"text": "a", "x": NaN}\n')
    with pytest.raises(DataError, match='field "x": found NaN, allowed text or a finite number'):
        open_records(path, template="{x}", target="text")
