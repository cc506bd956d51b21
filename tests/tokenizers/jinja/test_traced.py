"""Operations on text against those of `str`, and the sources of the characters worked by hand."""

from __future__ import annotations

import random
from itertools import groupby

import pytest

from minift.tokenizers.jinja import traced
from minift.tokenizers.jinja.traced import Text, runs_of


def marked(text: str) -> Text:
    """Each character with a source of its own kind: capitals 0, digits 2, others 1."""

    def source(c: str) -> int:
        return 0 if c.isupper() else 2 if c.isdigit() else 1

    return traced.join([traced.traced(c, source(c)) for c in text])


def consistent(text: Text) -> bool:
    """Whether each character still has the source of its kind."""
    expected = [
        (len(list(group)), source)
        for source, group in groupby(0 if c.isupper() else 2 if c.isdigit() else 1 for c in text)
    ]
    merged = [
        (sum(count for count, _ in group), source)
        for source, group in (
            (s, list(g)) for s, g in groupby(runs_of(text), key=lambda run: run[1])
        )
    ]
    return merged == expected


def texts() -> list[str]:
    draw = random.Random(3)
    return ["", " ", "a", *("".join(draw.choices("aB1 \n\t,-é灯", k=k)) for k in range(2, 60))]


@pytest.mark.parametrize("text", texts(), ids=range(len(texts())))
def test_parts_are_those_of_str_and_keep_their_sources(text: str) -> None:
    row = marked(text)
    for found, expected in [
        *((traced.split(row), text.split()), (traced.split(row, ","), text.split(","))),
        *(
            (traced.split(row, None, 1), text.split(None, 1)),
            (traced.lines(row), text.splitlines()),
        ),
        (traced.split(row, None, 2, right=True), text.rsplit(None, 2)),
        (traced.split(row, "a", 1, right=True), text.rsplit("a", 1)),
        (traced.lines(row, ends=True), text.splitlines(keepends=True)),
        ([traced.strip(row)], [text.strip()]),
        ([traced.strip(row, "aB", "left")], [text.lstrip("aB")]),
        ([traced.strip(row, None, "right")], [text.rstrip()]),
        ([traced.pick(row, slice(None, None, -1))], [text[::-1]]),
        ([traced.pick(row, slice(-5, 40, 3))], [text[-5:40:3]]),
        ([traced.pick(row, slice(4, 2))], [text[4:2]]),
        ([traced.replace(row, "a", "")], [text.replace("a", "")]),
        ([traced.replace(row, " ", marked("B1"), 2)], [text.replace(" ", "B1", 2)]),
        ([traced.join(traced.split(row, "1"), marked("B"))], [text.replace("1", "B")]),
    ]:
        assert [str(part) for part in found] == expected
        assert all(consistent(part) for part in found)


def test_runs_are_joined_and_what_is_unknown_is_plain() -> None:
    whole = traced.join([traced.traced("ab", 0), "", traced.traced("c", 0), "d"], "-")
    assert whole == "ab--c-d"
    assert runs_of(whole) == ((2, 0), (2, -1), (1, 0), (2, -1))
    assert runs_of(whole.upper()) == ((7, traced.UNKNOWN),)
    assert runs_of("") == runs_of(traced.traced("", 3)) == ()


def test_what_is_made_of_several_is_of_the_last_message_among_them() -> None:
    template, message = traced.traced("a", 0), traced.traced("b", 2)
    assert runs_of(traced.derived("xyz", template, message, template)) == ((3, 2),)
    assert runs_of(traced.derived("xyz", template)) == ((3, 0),)
    assert runs_of(traced.derived("xyz", "unknown", template)) == ((3, traced.UNKNOWN),)
    assert runs_of(traced.like("SS", traced.traced("ß", 4))) == ((2, 4),)
    assert runs_of(traced.title(traced.traced("it's a-b", 1))) == ((8, 1),)
