"""The post_processor of tokenizer.json: as libraries write it, and hostile ones."""

from __future__ import annotations

from typing import Any

import pytest

from minift.errors import FormatError
from minift.tokenizers.post_processor import to_json, wrapping_of
from minift.tokenizers.wrapping import Wrapping, after, around, twice_around

TOKENS = ["<s>", "a", "</s>", "[CLS]", "[SEP]"]
SPECIAL = {text: i for i, text in enumerate(TOKENS) if i != 1}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False}


def token(text: str, kind: int = 0) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": kind}}


def sequence(name: str, kind: int = 0) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}


def template(**changes: Any) -> dict[str, Any]:
    return {
        "type": "TemplateProcessing",
        "single": [token("<s>"), sequence("A")],
        "pair": [token("<s>"), sequence("A"), token("<s>", 1), sequence("B", 1)],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    } | changes


def test_llama3_writes_byte_level_and_a_template() -> None:
    value = {"type": "Sequence", "processors": [BYTE_LEVEL, template()]}
    expected = Wrapping(single=((0, 0), ("A", 0)), pair=((0, 0), ("A", 0), (0, 1), ("B", 1)))
    assert wrapping_of(value, SPECIAL, "t.json") == expected


def test_the_two_older_kinds() -> None:
    bert = {"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]}
    assert wrapping_of(bert, SPECIAL, "t.json") == around(3, 4)
    roberta = {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}
    roberta |= {"trim_offsets": True, "add_prefix_space": False}
    assert wrapping_of(roberta, SPECIAL, "t.json") == twice_around(0, 2)


def test_files_that_say_nothing() -> None:
    for value in (None, BYTE_LEVEL, {"type": "Sequence", "processors": [BYTE_LEVEL]}):
        assert wrapping_of(value, SPECIAL, "t.json") is None


@pytest.mark.parametrize("wrapping", [Wrapping(), after(0), around(3, 4), twice_around(0, 2)])
def test_there_and_back(wrapping: Wrapping) -> None:
    assert wrapping_of(to_json(wrapping, TOKENS), SPECIAL, "t.json") == wrapping


NAMED = template()["special_tokens"]
LIES: list[tuple[Any, str, str]] = [
    (5, "an object", "bad-type"),
    ({}, "post_processor.type", "unknown-field"),
    ({"type": ["ByteLevel"]}, "one of ByteLevel", "unknown-field"),
    ({"type": "Surprise"}, "one of ByteLevel", "unknown-field"),
    ({"type": "Sequence"}, "processors", "missing-field"),
    ({"type": "Sequence", "processors": [{"type": "Sequence"}]}, "in a Seq", "unknown-field"),
    ({"type": "Sequence", "processors": [template()] * 2}, "2 that add", "unknown-field"),
    ({"type": "BertProcessing"}, "cls: found None", "out-of-range"),
    ({"type": "BertProcessing", "cls": ["[CLS]", 4]}, "and its id", "out-of-range"),
    ({"type": "BertProcessing", "cls": ["a", 1]}, "a special token", "out-of-range"),
    ({"type": "BertProcessing", "cls": ["[CLS]", 3], "sep": 4}, "sep: found 4", "out-of-range"),
    ({"type": "RobertaProcessing", "cls": ["[CLS]", 3.0]}, "and its id", "out-of-range"),
    ({"type": "RobertaProcessing", "surprise": 1}, "an unknown field", "unknown-field"),
    (template(special_tokens=None), "special_tokens", "bad-type"),
    (template(special_tokens={"a": NAMED["<s>"]}), "its one id", "out-of-range"),
    (template(special_tokens={"<s>": NAMED["<s>"] | {"ids": [0, 0]}}), "one id", "out-of-range"),
    (template(special_tokens={"<s>": NAMED["<s>"] | {"ids": [2]}}), "one id", "out-of-range"),
    (template(special_tokens={}), "a token of special_tokens", "unknown-field"),
    (template(single=5), "allowed list", "bad-type"),
    (template(single=[]), "the text, after one", "unknown-field"),
    (template(single=[sequence("B")]), "the text, after one", "unknown-field"),
    (template(single=[sequence("A")] * 2), "the text, after one", "unknown-field"),
    (template(single=[token("<s>")] * 2 + [sequence("A")]), "the text", "unknown-field"),
    (template(single=[token("</s>"), sequence("A")]), "a token of special", "unknown-field"),
    (template(single=[sequence("A")] * 10_000), "at most 8 parts", "limit"),
    (template(single=[sequence("A", 2)]), "token type 0 or 1", "out-of-range"),
    (template(single=[sequence("A", -1)]), "token type 0 or 1", "out-of-range"),
    (template(single=[sequence("A", True)]), "token type 0 or 1", "out-of-range"),
    (template(single=[{"Sequence": {"id": "A"}}]), "with a type_id", "unknown-field"),
    (template(pair=[sequence("B"), sequence("A")]), "A, then B", "unknown-field"),
    (template(pair=[sequence("A")]), "A, then B", "unknown-field"),
    (template(pair=None), "allowed list", "bad-type"),
]


@pytest.mark.parametrize(("value", "text", "code"), LIES)
def test_hostile(value: Any, text: str, code: str) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        wrapping_of(value, SPECIAL, "t.json")
    assert caught.value.code == code
