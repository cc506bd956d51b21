"""Filters, tests, methods and operators, one by one; the values that jinja2 gives are golden."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minift.tokenizers import traced
from minift.tokenizers.jinja_tokens import JinjaError
from minift.tokenizers.jinja_values import (
    FILTERS,
    METHODS,
    TESTS,
    UNDEFINED,
    Work,
    equal,
    filtered,
    operate,
    text_of,
)

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden/jinja.json").read_text())


def test_every_filter_test_and_method_is_in_a_golden() -> None:
    text = " ".join(GOLDEN["written"])
    assert not [name for name in FILTERS if f"| {name}" not in text and f"('{name}'" not in text]
    assert not [name for name in TESTS if name.isalpha() and f"is {name}" not in text]
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
    with pytest.raises(JinjaError, match=r"does too much|nested too deeply"):
        filtered(work(), "tojson", a)


def test_a_filter_that_makes_one_text_of_two_says_that_it_is_a_messages() -> None:
    mixed = traced.join([traced.traced("a", traced.TEMPLATE), traced.traced("b", 3)])
    made = filtered(work(), "tojson", [mixed, traced.traced("c", 0)])
    assert made == '["ab", "c"]'
    assert traced.runs_of(made) == ((len(made), 3),)
    assert traced.runs_of(filtered(work(), "upper", mixed)) == ((1, 0), (1, 3))
