"""Records: their three shapes, templates and labels, and each way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minift.data.read import open_records, parse_template, unescape_template
from minift.data.records import FileRecords
from minift.errors import ConfigError, DataError

REVIEWS: dict[str, Any] = {
    "template": "Review: {text}\nSentiment:",
    "target": "label",
    "labels": ("negative", "positive"),
}


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- what is read --------------------------------------------------------------------------------


def test_prompt_records(tmp_path: Path) -> None:
    text = (
        '{"prompt": "Hi", "completion": "there", "id": 7}\n'
        "\n"
        ' {"completion": "\\u00e9\\ud83d\\ude00", "prompt": "Né"} \r\n'
        '{"prompt": "last", "completion": "no line end"}'
    )
    path = write(tmp_path, "a.jsonl", text)
    records = open_records(path)
    assert list(records) == [
        {"prompt": "Hi", "completion": "there"},
        {"prompt": "Né", "completion": "é😀"},
        {"prompt": "last", "completion": "no line end"},
    ]
    assert records.kind == "prompt"
    assert records.labels is None
    assert records.label_index(0) is None
    assert [records.where(i) for i in range(3)] == [1, 3, 4]
    assert records.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert records.row(0) == {"prompt": "Hi", "completion": "there", "id": 7}
    assert records[-1] == records[2] == records[np.int64(2)]
    assert records[1:] == [records[1], records[2]]
    with pytest.raises(IndexError):
        records[3]
    problem = records.error(1, "prompt", "9 tokens", "8")
    assert str(problem) == f'{path} line 3, field "prompt": found 9 tokens, allowed 8'


def test_message_and_text_records(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "weight": 1},
    ]
    path = write(tmp_path, "a.JSONL", json.dumps({"messages": messages, "text": "other"}))
    assert open_records(path).kind == "messages"
    assert open_records(path)[0] == {
        "messages": [
            {"role": "system", "content": ""},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
        ]
    }
    path = write(tmp_path, "b.jsonl", '{"text": "one"}\n{"text": " two ", "prompt": "x"}\n')
    assert list(open_records(path)) == [{"text": "one"}, {"text": " two "}]


def test_txt_is_paragraphs(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", "\n\n  one\r\nmore \n \t\n\ntwo\n\n\nthree")
    records = open_records(path)
    assert list(records) == [{"text": "  one\nmore"}, {"text": "two"}, {"text": "three"}]
    assert [records.where(i) for i in range(3)] == [3, 7, 10]


def test_csv_with_lines_inside_cells(tmp_path: Path) -> None:
    text = (
        "\ufeffid,prompt,completion\r\n"
        '1,"two\nlines, ""quoted""",a\r\n'
        "\r\n"
        '"2",plain,"b\r\n\r\nb"\r\n'
        "3,x y,z"
    )
    records = open_records(write(tmp_path, "a.csv", text))
    assert list(records) == [
        {"prompt": 'two\nlines, "quoted"', "completion": "a"},
        {"prompt": "plain", "completion": "b\r\n\r\nb"},
        {"prompt": "x y", "completion": "z"},
    ]
    assert [records.where(i) for i in range(3)] == [2, 5, 8]
    assert list(open_records(write(tmp_path, "a.tsv", "n\ttext\n1\ta,b\n"))) == [{"text": "a,b"}]


def test_template_and_labels(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\nso good,1\nbad,negative\nok , positive\n")
    records = open_records(path, **REVIEWS)
    assert records.kind == "prompt"
    assert records.labels == ("negative", "positive")
    assert list(records) == [
        {"prompt": "Review: so good\nSentiment:", "completion": " positive"},
        {"prompt": "Review: bad\nSentiment:", "completion": " negative"},
        {"prompt": "Review: ok \nSentiment:", "completion": " positive"},
    ]
    assert [records.label_index(i) for i in range(3)] == [1, 0, 1]
    path = write(tmp_path, "a.jsonl", '{"text": "so good", "label": 1, "n": 2.5}\n')
    assert open_records(path, **REVIEWS)[0] == records[0]
    assert open_records(path, template="{n}: {text}\n", target="label")[0] == {
        "prompt": "2.5: so good\n",
        "completion": "1",  # the prompt ends in white space
    }


def test_labels_of_plain_completions(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"prompt": "x:", "completion": " yes"}\n')
    records = open_records(path, labels=["no", "yes"])
    assert records[0] == {"prompt": "x:", "completion": " yes"}
    assert records.label_index(0) == 1


def test_a_label_word_that_is_a_number_wins_over_its_index(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\na,1\nb,0\n")
    records = open_records(path, template="{text}", target="label", labels=("1", "0"))
    assert [records.label_index(i) for i in range(2)] == [0, 1]


def test_limit_reads_only_the_first_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", '{"text": "a"}\n{"text": "b"}\nnot JSON\n')
    assert list(open_records(path, limit=2)) == [{"text": "a"}, {"text": "b"}]
    with pytest.raises(DataError, match="line 3"):
        open_records(path, limit=3)
    with pytest.raises(ConfigError, match="limit is 0"):
        open_records(path, limit=0)


# ---- templates -----------------------------------------------------------------------------------


def test_template_pieces() -> None:
    assert parse_template("{{{a}}} }}{b}{{", ["a", "b"]) == [
        ("{", None),
        ("", "a"),
        ("} }", None),
        ("", "b"),
        ("{", None),
    ]
    assert parse_template("{a.b}", ["a.b"]) == [("", "a.b")]  # a name, never an attribute
    assert unescape_template("a\\nb\\tc") == "a\nb\tc"
    assert unescape_template(r"a\\nb \d \\") == r"a\nb \d" + " \\"  # a backslash of its own


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{txet}", 'template field "txet" is no column; nearest: text'),
        ("{zzzzz}", "no column zzzzz; yours: text, label"),
        ("{}", "no column without a name"),
        ("{text.upper}", "nearest: text"),
        ("{text[0]}", "nearest: text"),
        ("{text.__class__}", "no column text.__class__"),
        ("{text!r}", "has a format"),
        ("{text:>9}", "has a format"),
        ("{text", "expected '}'"),
        ("text}", "Single '}'"),
        ("Review:", "names no column"),
        ("{text} is {label}", 'shows the target "label"'),
    ],
)
def test_bad_templates(tmp_path: Path, template: str, message: str) -> None:
    path = write(tmp_path, "a.csv", "text,label\na,1\n")
    with pytest.raises(ConfigError) as caught:
        open_records(path, template=template, target="label")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{text}"}, "template and target go together"),
        ({"target": "label"}, "template and target go together"),
        ({"template": "{text}", "target": "lable"}, 'target "lable" is no column; nearest: label'),
        ({"labels": ("a", "b")}, "labels need a target"),
        ({**REVIEWS, "labels": ("a", "a")}, "two or more different words"),
        ({**REVIEWS, "labels": ("a",)}, "two or more different words"),
        ({**REVIEWS, "labels": ("a", " ")}, "a list of words"),
        ({**REVIEWS, "labels": "negative,positive"}, "a list of words"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    path = write(tmp_path, "a.csv", "text,label\na,1\n")
    with pytest.raises(ConfigError) as caught:
        open_records(path, **options)
    assert message in str(caught.value)


def test_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'type ".xml"; allowed: .jsonl .json .csv .tsv .txt .p'):
        open_records(tmp_path / "a.xml")


# ---- what is refused -----------------------------------------------------------------------------

GOOD = '{"prompt": "a", "completion": "b"}\n'
CHAT = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


BAD: list[tuple[str, str | bytes, int | None, str | None, str]] = [
    ("a.jsonl", GOOD + "nope\n", 2, None, "no JSON value at character 1"),
    ("a.jsonl", GOOD + '{"prompt": "a" "completion": 1}\n', 2, None, "Expecting ',' delimiter"),
    ("a.jsonl", GOOD + "[1]\n", 2, None, "a list"),
    ("a.jsonl", GOOD + "null\n", 2, None, "null"),
    ("a.jsonl", GOOD + GOOD.strip() * 2, 2, None, "text after the JSON value, at character 35"),
    ("a.jsonl", GOOD + GOOD[:-4], 2, None, "a last line that may be cut: "),
    ("a.jsonl", GOOD.encode() + "{é".encode()[:-1], 2, None, "a last line that may be cut: "),
    ("a.jsonl", GOOD + '{"prompt": "a"}\n', 2, "completion", "no such field"),
    ("a.jsonl", '{"prompt": "a"}\n', 1, "completion", "no such field"),
    ("a.jsonl", GOOD + '{"text": "another kind"}\n', 2, "prompt", "no such field"),
    ("a.jsonl", GOOD + CHAT, 2, "prompt", "no such field"),
    ("a.jsonl", GOOD + '{"prompt": "a", "completion": null}\n', 2, "completion", "null"),
    ("a.jsonl", GOOD + '{"prompt": 3, "completion": "b"}\n', 2, "prompt", "3"),
    ("a.jsonl", GOOD + '{"prompt": true, "completion": "b"}\n', 2, "prompt", "true"),
    ("a.jsonl", GOOD + '{"prompt": ["a"], "completion": "b"}\n', 2, "prompt", "a list"),
    ("a.jsonl", GOOD + '{"prompt": " ", "completion": "b"}\n', 2, "prompt", "an empty text"),
    ("a.jsonl", GOOD + '{"prompt": "a", "completion": ""}\n', 2, "completion", "an empty text"),
    ("a.jsonl", GOOD + '{"prompt": "a", "prompt": "b"}\n', 2, "prompt", "the field twice"),
    ("a.jsonl", GOOD + '{"x": {"y": 1, "y": 2}}\n', 2, "y", "the field twice"),
    ("a.jsonl", '{"text": NaN}\n', 1, "text", "NaN"),
    ("a.jsonl", '{"text": -Infinity}\n', 1, "text", "-Infinity"),
    ("a.jsonl", '{"text": 1e999}\n', 1, "text", "1e999"),
    ("a.jsonl", GOOD + "[" * 200_000 + "\n", 2, None, "JSON nested too deeply"),
    ("a.jsonl", GOOD + '{"a": "\\ud800"}\n', 2, "a", "the lone surrogate U+D800"),
    ("a.jsonl", GOOD + '{"a": ["\\uDC00"]}\n', 2, "a", "the lone surrogate U+DC00"),
    ("a.jsonl", GOOD + '{"\\ud83d\\u0041": 1}\n', 2, "\ud83dA", "the lone surrogate U+D83D"),
    ("a.jsonl", GOOD.encode() + b'{"a": "\xff"}\n', 2, None, "the byte 0xff, 8 bytes into"),
    ("a.jsonl", GOOD.encode() + b'{"a": "\xed\xa0\x80"}\n', 2, None, "the byte 0xed"),
    ("a.jsonl", GOOD + '{"a": "tab\there"}\n', 2, None, "Invalid control character"),
    ("a.jsonl", GOOD.encode("utf-16"), 1, None, "UTF-16"),
    ("a.jsonl", GOOD.encode("utf-16-le"), 1, None, "UTF-16"),
    ("a.jsonl", GOOD.encode("utf-16-be"), 1, None, "UTF-16"),
    ("a.jsonl", "", None, None, "an empty file"),
    ("a.jsonl", "\n \n", None, None, "no rows"),
    ("a.jsonl", '{"question": "a", "answer": "b"}\n', 1, None, "fields question, answer"),
    ("a.jsonl", "{}\n", 1, None, "no fields"),
    ("a.jsonl", CHAT + '{"messages": "hi"}\n', 2, "messages", '"hi"'),
    ("a.jsonl", CHAT + '{"messages": []}\n', 2, "messages", "no assistant message"),
    ("a.jsonl", CHAT + GOOD, 2, "messages", "no such field"),
    ("a.jsonl", CHAT + '{"messages": ["hi"]}\n', 2, "messages[0]", '"hi"'),
    ("a.jsonl", CHAT.replace('"user"', '"tool"'), 1, "messages[0].role", '"tool"'),
    ("a.jsonl", CHAT.replace('"user"', '["user"]'), 1, "messages[0].role", "a list"),
    ("a.jsonl", CHAT.replace('"b"', "null"), 1, "messages[1].content", "null"),
    ("a.jsonl", CHAT.replace('"b"', '" "'), 1, "messages[1].content", "an empty text"),
    ("a.jsonl", CHAT.replace('"role": "user", ', ""), 1, "messages[0].role", "no such field"),
    ("a.jsonl", CHAT.replace("assistant", "user"), 1, "messages", "no assistant message"),
    ("a.csv", "text\na\nb,c\n", 3, None, "2 cells"),
    ("a.csv", "text,label\na\n", 2, None, "1 cells"),
    ("a.csv", 'text,n\n"a\nb",1\n"c\nd"\n', 4, None, "1 cells"),
    ("a.csv", 'text,n\na,1\n"b,2\nc,3\n', 3, None, "a quote that is never closed"),
    ("a.csv", 'text,n\n"a"b,1\n', 2, None, "a quote or line end inside a cell"),
    ("a.csv", 'text,n\n"a\n"b"\nc,1\nd,2\n', 2, None, "never closed"),
    ("a.csv", 'text,n\na ""b"",1\n', 2, None, "a quote or line end inside a cell"),
    ("a.csv", "text,n\na\rb,1\n", 2, None, "a quote or line end inside a cell"),
    ("a.csv", "text,text\na,b\n", 1, None, "a header with the names"),
    ("a.csv", "text,\na,b\n", 1, None, "a header with the names"),
    ("a.csv", "review,stars\na,1\n", 2, None, "fields review, stars"),
    ("a.csv", "prompt,completion\na,\n", 2, "completion", "an empty text"),
    ("a.csv", "text,n\n", None, None, "no rows"),
    ("a.csv", "\ufeff", None, None, "no rows"),
    ("a.csv", b"text\na\n\xff\n", 3, None, "the byte 0xff, 1 bytes into"),
    ("a.csv", "text,n\na,1\nb", 3, None, "a last line that may be cut: 1 cells"),
    ("a.csv", "text\na\n".encode("utf-16"), 1, None, "UTF-16"),
    ("a.txt", b"one\n\ntwo\nmore \xe9\n", 3, None, "the byte 0xe9, 10 bytes into"),
    ("a.txt", b"", None, None, "an empty file"),
    ("a.jsonl", GOOD + "{'prompt': 'a'}\n", 2, None, "no JSON: Expecting property name"),
    ("a.jsonl", GOOD + '"text"\n', 2, None, '"text"'),
    ("a.jsonl", GOOD + "true\n", 2, None, "true"),
    ("a.jsonl", GOOD + "\0\n", 2, None, "no JSON value"),
    ("a.jsonl", GOOD.encode() + bytes(50) + b"\n", 2, None, "no JSON value"),
    ("a.jsonl", GOOD + '{"a":' * 200_000 + "\n", 2, None, "JSON nested too deeply"),
    ("a.jsonl", GOOD + '{"x": 01}\n', 2, None, "no JSON"),
    ("a.jsonl", GOOD + '{"a": "\\ud83d"}\n', 2, "a", "the lone surrogate U+D83D"),
    ("a.jsonl", GOOD + '{"a": {"b": "\\udfff"}}\n', 2, "a", "the lone surrogate U+DFFF"),
    ("a.jsonl", GOOD.encode() + b'{"a": "\xc0\x80"}\n', 2, None, "the byte 0xc0"),
    ("a.jsonl", GOOD.encode("utf-32"), 1, None, "UTF-16"),
    ("a.jsonl", GOOD + '{"prompt": {}, "completion": "b"}\n', 2, "prompt", "an object"),
    ("a.jsonl", GOOD + '{"prompt": "a", "completion": 1.5}\n', 2, "completion", "1.5"),
    ("a.jsonl", GOOD + '{"prompt": "a", "completion": "\\t"}\n', 2, "completion", "an empty"),
    ("a.jsonl", '{"completion": "b"}\n', 1, "prompt", "no such field"),
    ("a.jsonl", '{"Prompt": "a", "Completion": "b"}\n', 1, None, "fields Prompt, Completion"),
    ("a.jsonl", '{"text": null}\n', 1, "text", "null"),
    ("a.jsonl", '{"text": ["a"]}\n', 1, "text", "a list"),
    ("a.jsonl", '{"text": "a"}\n{"text": ""}\n', 2, "text", "an empty text"),
    ("a.jsonl", CHAT + '{"messages": null}\n', 2, "messages", "null"),
    ("a.jsonl", CHAT + '{"messages": {}}\n', 2, "messages", "an object"),
    ("a.jsonl", CHAT + '{"messages": [null]}\n', 2, "messages[0]", "null"),
    ("a.jsonl", CHAT + '{"messages": [{}]}\n', 2, "messages[0].role", "no such field"),
    ("a.jsonl", CHAT.replace('"b"', '["b"]'), 1, "messages[1].content[0]", '"b"'),
    ("a.jsonl", CHAT.replace('"b"', "7"), 1, "messages[1].content", "7"),
    ("a.jsonl", CHAT.replace('"user"', "null"), 1, "messages[0].role", "null"),
    ("a.jsonl", CHAT.replace('"user"', '"User"'), 1, "messages[0].role", '"User"'),
    ("a.jsonl", CHAT.replace('"a"', '"\\n"'), 1, "messages[0].content", "an empty text"),
    ("a.jsonl", json.dumps({str(i): 0 for i in range(70_000)}), 1, None, "fields 0, 1"),
    ("a.jsonl", GOOD + "{" + '"x":0,' * 99_999 + '"y":0}\n', 2, "x", "twice"),
    ("a.jsonl", GOOD + "\n" * 1_000_000 + "{", 1_000_002, None, "may be cut"),
    ("a.csv", "," * 1_000_000 + "\n", 1, None, 'a header with the names "", ""'),
    ("a.csv", "text" + ",text" * 200_000 + "\n", 1, None, "a header with the names"),
    ("a.csv", "text\n" + "a," * 500_000 + "\n", 2, None, "500001 cells"),
    ("a.csv", "text\n" + '"' * 999_999 + "\n", 2, None, "a quote that is never closed"),
    ("a.csv", 'text,n\n"a" ,1\n', 2, None, "a quote or line end inside a cell"),
    ("a.csv", 'text,n\n "a",1\n', 2, None, "a quote or line end inside a cell"),
    ("a.csv", 'te"xt\na\n', 1, None, "never closed"),
    ("a.csv", b"te\xffxt\na\n", 1, None, "the byte 0xff"),
    ("a.csv", "text,n\na,1\n\x0c\n", 3, None, "1 cells"),
    ("a.csv", "\n\n\n", None, None, "no rows"),
    ("a.csv", "", None, None, "an empty file"),
    ("a.csv", "prompt,completion\n,b\n", 2, "prompt", "an empty text"),
    ("a.csv", "prompt,text2\na,b\n", 2, "completion", "no such field"),
    ("a.csv", "text;n\na;1\n", 2, None, "fields text;n"),
    ("a.tsv", "text\tn\na\n", 2, None, "1 cells"),
    ("a.tsv", "text,n\na,1\n", 2, None, "fields text,n"),
    ("a.tsv", 'text\tn\n"a\t1\n', 2, None, "never closed"),
    ("a.txt", "one\n".encode("utf-16-le"), 1, None, "UTF-16"),
    ("a.txt", " \n\t\n", None, None, "no rows"),
    ("a.txt", bytes(100), 1, None, "UTF-16"),
    ("a.txt", b"one\n\n\xed\xa0\x80\n", 3, None, "the byte 0xed"),
    ("a.txt", "é\n".encode("latin-1"), 1, None, "the byte 0xe9"),
    ("a.txt", b"\x89PNG\r\n\x1a\n" + b"x" * 40, 1, None, "the byte 0x89"),
]


@pytest.mark.parametrize(("name", "content", "line", "field", "found"), BAD, ids=range(len(BAD)))
def test_refused(
    tmp_path: Path, name: str, content: str | bytes, line: int | None, field: str, found: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        open_records(path)
    problem = caught.value
    assert (problem.file, problem.line, problem.field) == (str(path), line, field)
    assert found in str(problem)
    assert "\n" not in str(problem)


BAD_LABELS: list[tuple[str, str, int, str, str]] = [
    (
        "a.csv",
        "text,label\na,1\nb,postive\n",
        3,
        "label",
        '"postive", which is not in --labels, allowed negative, posit',
    ),
    (
        "a.csv",
        "text,label\na,2\n",
        2,
        "label",
        '"2", which is not in --labels, allowed negative, positive or 0 to 1',
    ),
    ("a.csv", "text,label\na,\n", 2, "label", '""'),
    ("a.csv", "text,label\na,²\n", 2, "label", '"²"'),
    ("a.csv", "text,label\na," + "0" * 5000 + "\n", 2, "label", '"0000'),
    ("a.csv", "text,label\n ,1\n", 2, "text", "an empty text"),
    ("a.jsonl", '{"text": "a", "label": -1}\n', 1, "label", "-1"),
    ("a.jsonl", '{"text": "a", "label": true}\n', 1, "label", "true"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "a"}\n', 2, "label", "no such field"),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"label": 1}\n', 2, "text", "no such field"),
    ("a.jsonl", '{"text": null, "label": 1}\n', 1, "text", "null"),
    ("a.jsonl", '{"text": "a", "label": null}\n', 1, "label", "null"),
    ("a.jsonl", '{"text": "a", "label": []}\n', 1, "label", "a list"),
    ("a.jsonl", '{"text": "a", "label": 2}\n', 1, "label", "2"),
    ("a.csv", "text,label\na,-1\n", 2, "label", '"-1"'),
    ("a.csv", "text,label\na,Positive\n", 2, "label", '"Positive"'),
    ("a.csv", "text,label\na,+1\n", 2, "label", '"+1"'),
    ("a.csv", "text,label\na,١\n", 2, "label", '"١"'),
    ("a.tsv", "text\tlabel\na\t3\n", 2, "label", '"3"'),
]


@pytest.mark.parametrize(
    ("name", "content", "line", "field", "found"), BAD_LABELS, ids=range(len(BAD_LABELS))
)
def test_refused_with_a_template(
    tmp_path: Path, name: str, content: str, line: int, field: str, found: str
) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        open_records(path, **REVIEWS)
    assert (caught.value.line, caught.value.field) == (line, field)
    assert f"found {found}" in str(caught.value)


def test_an_empty_answer_column(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\na, \n")
    with pytest.raises(DataError, match='line 2, field "label": found an empty text'):
        open_records(path, template="{text}", target="label")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a\.jsonl: no such file$"):
        open_records(tmp_path / "a.jsonl")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="not a plain file"):
        open_records(tmp_path / "folder.csv")


def test_the_last_of_many_lines_is_checked(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", GOOD * 20_000 + '{"prompt": "a", "completion": 0}\n')
    with pytest.raises(DataError, match='line 20,001, field "completion": found 0'):
        open_records(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_a_line_over_the_limit_is_not_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with open(path, "wb") as file:  # a hole of 1 TB: only its first blocks can be looked at
        file.write(b'{"text": "a"}\n"' if name == "a.jsonl" else b'text\n"')
        file.truncate(1 << 40)
    with pytest.raises(DataError, match=r"line \d: found over 16 MiB"):
        open_records(path)


@pytest.mark.parametrize("change", ["cut", "grown", "touched", "replaced", "gone"])
def test_a_file_that_changes(tmp_path: Path, change: str) -> None:
    path = write(tmp_path, "a.jsonl", GOOD * 3)
    records = open_records(path)
    assert len(records) == 3
    if change == "cut":
        os.truncate(path, 10)
    elif change == "grown":
        path.write_text(GOOD * 4)
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "replaced":
        old = os.stat(path)
        other = write(tmp_path, "b.jsonl", GOOD.replace("a", "c") * 3)
        os.utime(other, ns=(old.st_atime_ns, old.st_mtime_ns))
        os.replace(other, path)
    else:
        path.unlink()
    with pytest.raises(DataError, match="it changed while it was in use"):
        records[1]


def test_the_current_folder_may_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.jsonl", GOOD)
    monkeypatch.chdir(tmp_path)
    records = open_records("a.jsonl")
    monkeypatch.chdir("/")
    assert records[0] == {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize("name", ["a\0.jsonl", "x" * 300 + ".csv", "a.txt/b.txt", "loop.jsonl"])
def test_paths_that_are_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    write(tmp_path, "a.txt", "text")
    with pytest.raises(DataError) as caught:
        open_records(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_columns_in_an_error_are_few_and_printable(tmp_path: Path) -> None:
    header = ",".join(f"c{i}" for i in range(100_000))
    path = write(tmp_path, "a.csv", f'"a\x1b[2J\n",{header}\n' + "," * 100_000 + "\n")
    for template in ("{text}", "plain"):
        with pytest.raises(ConfigError) as caught:
            open_records(path, template=template, target="c1")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "txt"])
@pytest.mark.parametrize("blank", ["\n", "\r\n", "\n\r\n"])
def test_blank_lines_cost_no_look_at_the_file(
    suffix: str, blank: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"jsonl": '{"text": "a"}\n', "txt": "a\n"}.get(suffix, "a\n")
    head = "text\n" if suffix in ("csv", "tsv") else ""
    path = write(tmp_path, f"a.{suffix}", head + blank * 300_000 + row + blank * 300_000 + row)
    looks = []
    identity = FileRecords._identity
    monkeypatch.setattr(FileRecords, "_identity", lambda self: looks.append(1) or identity(self))
    records = open_records(path)
    assert len(looks) < 10
    lines = blank.count("\n") * 300_000 + 1 + bool(head)
    assert [records.where(i) for i in range(2)] == [lines, 2 * lines - bool(head)]
    assert list(records) == [{"text": "a"}] * 2


WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""

    def attempt(folder: Path, name: str, content: Any, options: dict[str, Any]) -> None:
        path = folder / name
        if callable(content):
            content(path)
        else:
            write(folder, name, content)
        open_records(path, **options)

    def hole(start: bytes) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            path.write_bytes(start)
            os.truncate(path, 1 << 40)

        return make

    wide = ",".join(f"c{i}" for i in range(100_000)) + "\n" + "," * 99_999 + "\n"
    evil = '"a\x1b[2J\n",b\n1,2\n'
    other: list[tuple[str, Any, dict[str, Any], str]] = [
        ("a.jsonl", lambda path: path.mkdir(), {}, "data"),
        ("a.jsonl", os.mkfifo, {}, "data"),
        ("a.jsonl", lambda path: path.symlink_to(path.name), {}, "data"),
        ("a.jsonl", lambda path: path.symlink_to("nowhere"), {}, "config"),
        ("a.jsonl", lambda path: path.symlink_to("/dev/zero"), {}, "data"),
        ("a.jsonl", lambda path: None, {}, "config"),
        ("a.jsonl", hole(b'{"text": "a"}\n"'), {}, "data"),
        ("a.csv", hole(b'text\n"'), {}, "data"),
        ("a.tsv", hole(b"text\n"), {}, "data"),
        ("a.txt", hole(b"text\n"), {}, "data"),
        ("a.json", "[" * (1 << 20), {}, "data"),
        ("a.json", '[{"text": "a"},' * 60_000, {}, "data"),
        ("a.json", '["' + "\\" * (1 << 20), {}, "data"),
        ("a.json", hole(b'[{"text": "a"},'), {}, "data"),
        ("a.json", hole(b'[{"text": "'), {}, "data"),
        ("a.json", "[" + " " * (1 << 20), {}, "data"),
        ("a.json", '[{"text": "a"}' + "," * (1 << 20), {}, "data"),
        ("a.parquet", b"PAR1" + bytes(40), {}, "data" if find_spec("pyarrow") else "config"),
        ("a", GOOD, {}, "config"),
        ("a.csv", wide, {"template": "{text}", "target": "label"}, "config"),
        ("a.csv", wide, {"template": "{c0}", "target": "label"}, "config"),
        ("a.csv", wide, {"template": "text", "target": "c0"}, "config"),
        ("a.csv", evil, {"template": "{text}", "target": "b"}, "config"),
        ("a.csv", evil, {"template": "text", "target": "b"}, "config"),
        ("a.csv", evil, {"template": "{b.__class__}", "target": "b"}, "config"),
        ("a.csv", "text,label\na,1\n", REVIEWS | {"template": "{label}{text}"}, "config"),
        ("a.csv", "text,label\na,1\n", {"labels": ("a", "b")}, "config"),
    ]
    blank = {
        "lines": b"\n",
        "lines of Windows": b"\r\n",
        "lines of spaces": b" \t\n",
        "spaces": b" ",
    }
    for name in ("a.jsonl", "a.csv", "a.tsv", "a.txt"):
        other += [(name, (1 << 20) // len(b) * b, {}, "data") for b in blank.values()]
        other += [(name, hole(b"\n" * 1000), {}, "data"), (name, hole(b" "), {}, "data")]
        other += [(name, "one\n".encode(form), {}, "data") for form in WIDE]
        other.append((name, b"\xff" * (1 << 20), {}, "data"))
    rows = b'{"text": "a"}\n'
    other += [
        ("a.jsonl", rows + b"\n" * (1 << 20) + b"{}", {}, "data"),
        ("a.jsonl", rows + b"\0" * (1 << 20), {}, "data"),
        ("a.jsonl", rows + b'{"text": "\0"}\n', {}, "data"),
        ("a.jsonl", b'{"text": "a", "x": "' + b"\\ud800" * 150_000 + b'"}', {}, "data"),
        ("a.jsonl", b"[" * (1 << 20), {}, "data"),
        ("a.jsonl", b'{"a":' * 200_000, {}, "data"),
        ("a.jsonl", b'{"text": ' + b"9" * (1 << 20) + b"}", {}, "data"),
        ("a.jsonl", b'{"text": "a", ' + b'"b": 1, ' * 130_000 + b'"c": 1}', {}, "data"),
        ("a.csv", b"text\n" + b"\n" * (1 << 20) + b'"', {}, "data"),
        ("a.csv", b"," * (1 << 20), {}, "data"),
        ("a.csv", b'"' * ((1 << 20) + 1), {}, "data"),
        ("a.csv", b'text\n"' + b"\n" * (1 << 20), {}, "data"),
        ("a.csv", b"text\n" + b'""\n' * 300_000, {}, "data"),
    ]
    for depth in (
        480,
        970,
        980,
        985,
        990,
        995,
    ):  # decoder and encoder give up at depths of their own
        text = b'{"a": "\\ud83d\\ude00", "x": %s}' % (b"[" * depth + b"]" * depth)
        other.append(("a.jsonl", text, {}, "data"))
    cases = [(name, content, {}, "data") for name, content, *_ in BAD]
    cases += [(name, content, REVIEWS, "data") for name, content, *_ in BAD_LABELS]
    return {
        f"{name} {number}": (partial(attempt, name=name, content=content, options=options), code)
        for number, (name, content, options, code) in enumerate([*cases, *other])
    }
