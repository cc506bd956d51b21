"""Options of a file: of the right kind, or a problem."""

from __future__ import annotations

import pytest

from minift.interop.peft_format import number, one, whole


def test_options_of_the_right_kind():
    data = {"flag": True, "list": [1], "count": 3, "scale": 2, "none": None}
    problems = []
    assert one(data, "flag", bool, problems) is True
    assert one(data, "list", list, problems) == [1]
    assert one(data, "none", dict, problems) is None
    assert one(data, "absent", dict, problems) is None
    assert whole(data, "count", problems) == 3
    assert whole(data, "absent", problems, 7) == 7
    assert number(data, "scale", problems) == 2.0
    assert number(data, "absent", problems, 0.5) == 0.5
    assert problems == []


@pytest.mark.parametrize(("read", "value", "text"), [
    (lambda d, p: one(d, "x", bool, p), 1, "not true or false"),
    (lambda d, p: one(d, "x", dict, p), [], "not an object"),
    (lambda d, p: one(d, "x", list, p), "a", "not a list"),
    (lambda d, p: whole(d, "x", p), True, "not a whole number"),
    (lambda d, p: whole(d, "x", p), 2.0, "not a whole number"),
    (lambda d, p: whole(d, "x", p), None, "not a whole number"),
    (lambda d, p: number(d, "x", p), "8", "not a number"),
    (lambda d, p: number(d, "x", p), True, "not a number"),
])  # fmt: skip
def test_others_are_problems(read, value, text):
    read({"x": value}, problems := [])
    (problem,) = problems
    assert problem.startswith("x is ")
    assert text in problem
