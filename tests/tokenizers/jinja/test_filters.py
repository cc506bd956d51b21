"""Filters and tests: each is in a golden of jinja2's; sources and limits by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minift.tokenizers.jinja import traced
from minift.tokenizers.jinja.filters import FILTERS, TESTS, filtered
from minift.tokenizers.jinja.tokens import JinjaError
from minift.tokenizers.jinja.values import Work

GOLDEN = json.loads(Path(__file__).parents[2].joinpath("golden/jinja.json").read_text())


def work() -> Work:
    return Work(1000, 1000)


def test_every_filter_and_test_is_in_a_golden() -> None:
    text = " ".join(GOLDEN["written"])
    assert not [name for name in FILTERS if f"| {name}" not in text and f"('{name}'" not in text]
    assert not [name for name in TESTS if name.isalpha() and f"is {name}" not in text]


def test_json_is_charged_for() -> None:
    nested: list[object] = ["x"]
    for _ in range(60):
        nested = [nested, nested]
    with pytest.raises(JinjaError, match=r"does too much|nested too deeply"):
        filtered(work(), "tojson", nested)


@pytest.mark.parametrize("named", [
    {"indent": 33}, {"indent": " " * 33}, {"separators": (",", ":" * 33)},
])  # fmt: skip
def test_what_json_puts_between_its_values_is_short(named: dict[str, object]) -> None:
    with pytest.raises(JinjaError, match="over 32 characters"):
        filtered(work(), "tojson", [1, 2], **named)


def test_a_filter_that_makes_one_text_of_two_says_that_it_is_a_messages() -> None:
    mixed = traced.join([traced.traced("a", traced.TEMPLATE), traced.traced("b", 3)])
    made = filtered(work(), "tojson", [mixed, traced.traced("c", 0)])
    assert made == '["ab", "c"]'
    assert traced.runs_of(made) == ((len(made), 3),)
    assert traced.runs_of(filtered(work(), "upper", mixed)) == ((1, 0), (1, 3))
