"""Operators and methods: each is in a golden of jinja2's; refusals and limits by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minift.tokenizers.jinja.tokens import JinjaError
from minift.tokenizers.jinja.values import (
    METHODS,
    UNDEFINED,
    Work,
    equal,
    operate,
    text_of,
)

GOLDEN = json.loads(Path(__file__).parents[2].joinpath("golden/jinja.json").read_text())


def test_every_method_is_in_a_golden() -> None:
    text = " ".join(GOLDEN["written"])
    assert not [name for name in METHODS[str] | METHODS[dict] if f".{name}(" not in text]


def work(steps: int = 1000, longest: int = 1000) -> Work:
    return Work(steps, longest)


@pytest.mark.parametrize(
    ("sign", "a", "b"),
    [
        ("+", "a", 1),
        ("+", 1, "a"),
        ("+", "a", None),
        ("+", [1], (2,)),
        ("-", "a", "b"),
        ("%", "%100000000d", 1),
        ("*", [1], 3),
        ("*", 1 << 40, 1 << 40),
        ("*", "a", 10_000),
        ("~", "a", [1]),
        ("+", UNDEFINED, "a"),
    ],
)
def test_operators_that_are_refused(sign: str, a: object, b: object) -> None:
    with pytest.raises(JinjaError):
        operate(work(), sign, a, b)


def test_a_list_is_not_written() -> None:
    with pytest.raises(JinjaError, match="writes a list"):
        text_of(["a"])


def test_reading_is_charged_for() -> None:
    a: list[object] = ["x"]
    b: list[object] = ["x"]
    for _ in range(60):
        a, b = [a, a], [b, b]
    with pytest.raises(JinjaError, match="does too much"):
        equal(work(), a, b)
