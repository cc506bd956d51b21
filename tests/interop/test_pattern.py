"""The bounded engine says what Python's `re` says, of the same patterns, in bounded time."""

from __future__ import annotations

import random
import re
import warnings

import pytest

from minift.interop.pattern import Budget, Pattern, Unreadable

PARTS = ["a", "b", "_", ".", "-", r"\.", r"\d", r"\w", r"\b", r"\B", "^", "$", "[ab]", "[^a.]",
         "[a-c_]", r"\W", "q_proj", "(?:", "(", ")", "|", "*", "+", "?", "{2}", "{1,2}", "{,1}",
         "{0,}", "*?", "{", "}", "]", "[]a]", "1", r"\s", r"[\d-]", r"[\w.]", r"\Z", r"\A",
         "(?P<x>", "{2,1}", r"\-", "[a-]", "[--a]"]  # fmt: skip
TEXTS = ["", "a", "ab", "a.b", "aab", "a.q_proj", "model.layers.1.q_proj", "1a", "a1_", "-a", "]"]


def test_it_agrees_with_re_on_thousands_of_patterns():
    choice, compared = random.Random(5), 0
    for _ in range(8_000):
        text = "".join(choice.choice(PARTS) for _ in range(choice.randint(1, 7)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = re.compile(text)
            except (re.error, RecursionError):
                expected = None
        try:
            found = Pattern(text)
        except Unreadable as error:
            refused = str(error)
            if expected is not None and "possessive" not in refused:
                pytest.fail(f"{text}: {refused}")
            continue
        assert expected is not None, text
        for words in TEXTS:
            assert found.matches(words) == bool(expected.fullmatch(words)), (text, words)
            assert found.matches(words, whole=False) == bool(expected.match(words)), (text, words)
            compared += 2
    assert compared > 20_000


@pytest.mark.parametrize(
    "text", ["(a*)*b", "(a|a)*b", "(a|aa)+$", "(.*)(.*)(.*)(.*)x", "(?:a?){30}a{30}"]
)
def test_what_runs_away_in_re_does_not(text):
    budget = Budget(200_000)
    assert not Pattern(text, budget).matches("a" * 29 + "!")
    assert budget.left > 0


@pytest.mark.parametrize(("text", "why"), [
    ("(?=a)", "looks around"), ("(?<!a)b", "looks around"), ("(?i)a", "flags"),
    (r"(a)\1", "refers back"), ("a*+", "possessively"), ("(a", "does not end"), ("a)", "not open"),
    ("*a", "repeats nothing"), ("a**", "repeats a repetition"), ("[a", "too early"),
    ("(" * 99, "groups in each other"), ("(a{999}){999}", "states"), (r"\p", "unknown escape"),
])  # fmt: skip
def test_what_it_does_not_read_it_says(text, why):
    with pytest.raises(Unreadable, match=why):
        Pattern(text)


def test_a_budget_is_shared_and_ends():
    budget = Budget(2_000)
    assert all(Pattern(f"layer{i}.*q", budget) for i in range(10))
    with pytest.raises(Unreadable, match="costs more than"):
        assert all(Pattern(f"layer{i}.*q", budget) for i in range(100))
