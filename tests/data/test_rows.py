"""Where rows are, compared with what Python's csv and json modules make of the same bytes."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pytest

from minift.data import records, rows
from minift.data.read import open_records
from minift.data.rows import READERS, Problem
from minift.errors import DataError


def spans_of(suffix: str, data: bytes) -> list[tuple[bytes, int]]:
    spans, _ = READERS[suffix]
    return [(data[start:stop], line) for start, stop, line in spans(data, 0)]


@pytest.fixture(params=[1, 2, 3, 7, 1 << 20])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks so small that line ends and quotes stand on both sides of every border."""
    monkeypatch.setattr(rows, "BLOCK", request.param)
    return request.param


def test_lines(block: int) -> None:
    data = b"one\n\n three\r\nlast"
    assert spans_of(".jsonl", data) == [(b"one\n", 1), (b" three\r\n", 3), (b"last", 4)]
    assert spans_of(".jsonl", b"a\n") == [(b"a\n", 1)]
    assert spans_of(".jsonl", b"") == []


def test_paragraphs(block: int) -> None:
    data = b"\none\n1\n \n\ntwo\n\n\n3"
    assert spans_of(".txt", data) == [(b"one\n1\n", 2), (b"two\n", 6), (b"3", 9)]
    assert spans_of(".txt", b"\n\n") == []


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_csv_reads_what_the_csv_module_wrote(block: int, suffix: str) -> None:
    draw = random.Random(0)
    delimiter = "," if suffix == ".csv" else "\t"
    for _ in range(30):
        quoting = draw.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        # The csv module of Python 3.11 leaves a cell with a bare \r unquoted: no CSV by the RFC.
        letters = 'ab",\n\té ' + ("\r" if quoting == csv.QUOTE_ALL else "")
        table = [
            ["".join(draw.choices(letters, k=draw.randrange(6))) for _ in range(3)]
            for _ in range(8)
        ]
        out = io.StringIO()
        end = draw.choice(["\n", "\r\n"])
        csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(
            [["x", "y", "z"], *table]
        )
        data = out.getvalue().encode()
        spans = spans_of(suffix, data)
        parse = READERS[suffix][1]()
        assert parse(spans[0][0]) is None
        assert [parse(raw) for raw, _ in spans[1:]] == [
            dict(zip("xyz", row, strict=True)) for row in table
        ]
        # The line on which a row starts: the line ends in all rows before it.
        at = 0
        for raw, line in spans:
            assert line == data[:at].count(b"\n") + 1
            at += len(raw)
        assert at == len(data)


def test_json_rows_are_those_of_the_json_module() -> None:
    parse = READERS[".jsonl"][1]()
    for row in (
        {"text": 'é\n"\\/\u2028 😀'},
        {"a": {"b": [1, -2, 0.5, 1e-7, None, True, False, "x"]}, "": ""},
        {"n": 10**19, "long": 10**19},
    ):
        for ascii_only in (False, True):
            raw = json.dumps(row, ensure_ascii=ascii_only).encode()
            assert parse(b" \t" + raw + b"\r\n") == row == json.loads(raw)


def test_every_cut_and_every_flipped_bit_is_a_row_or_a_problem() -> None:
    whole = b'{"prompt": "a\\n\\ud83d\\ude00", "n": [1, 2.5e3, null], "m": {"k": true}}\n'
    table = b'text,n\n"a ""b""\n,",1\nc,"2"\n'
    for suffix, data in ((".jsonl", whole), (".csv", table), (".txt", b"one\n\ntwo \xc3\xa9\n")):
        damaged = [data[:k] for k in range(len(data))]
        for k in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[k // 8] ^= 1 << k % 8
            damaged.append(bytes(flipped))
        outcomes, told = set(), 0
        for case in damaged:
            parse = READERS[suffix][1]()
            for raw, _ in spans_of(suffix, case):
                try:
                    outcomes.add(type(parse(raw)))
                except Problem as problem:
                    outcomes.add(type(problem))
                    told += bool(problem.found and problem.allowed)
        assert told
        assert {dict, Problem} <= outcomes <= {dict, Problem, type(None)}


@pytest.mark.parametrize(
    ("name", "at", "over"),
    [
        ("a.jsonl", '{"text": "1234567"}\n', '{"text": "12345678"}\n'),
        ("a.csv", "text\n1234567890123456789\n", "text\n12345678901234567890\n"),
        ("a.txt", "1234567890123456789\n", "12345678901234567890\n"),
    ],
)
def test_a_row_at_the_limit_and_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: str, over: str
) -> None:
    for module in (rows, records):
        monkeypatch.setattr(module, "LINE_LIMIT", 20)
    (tmp_path / name).write_text(at)
    assert len(open_records(tmp_path / name)) == 1
    (tmp_path / name).write_text(over)
    with pytest.raises(DataError, match="shorter rows"):
        open_records(tmp_path / name)
