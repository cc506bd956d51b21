"""Trees by hand: each kind of statement, and each kind of expression."""

from __future__ import annotations

import pytest

from minift.tokenizers.jinja import tree
from minift.tokenizers.jinja.parse import parse

A, B, ONE, NONE = tree.Name("a"), tree.Name("b"), tree.Literal(1), tree.Arguments()
X = (tree.Output(tree.Literal("x")),)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a + 1 - b", tree.Chain(A, (("+", ONE), ("-", B)))),
        ("a < b == 1", tree.Compare(A, (("<", B), ("==", ONE)))),
        ("a and b", tree.Logic(False, (A, B))),
        ("a or b", tree.Logic(True, (A, B))),
        ("not -a", tree.Sign("not", tree.Sign("-", A))),
        ("1 if a else b", tree.Choice(A, ONE, B)),
        ("a.b", tree.Member(A, tree.Literal("b"), dotted=True)),
        ("a[b]", tree.Member(A, B, dotted=False)),
        ("a[1:]", tree.Slice(A, (ONE, None, None))),
        ("a(1, b=b)", tree.Call(A, tree.Arguments((ONE,), (("b", B),)))),
        ("a | b", tree.Filter(A, "b", NONE)),
        ("a is not b", tree.Test(A, "b", NONE, negated=True)),
        ("[a, 1]", tree.Items((A, ONE), is_tuple=False)),
        ("(a,)", tree.Items((A,), is_tuple=True)),
        ("{a: b}", tree.Pairs(((A, B),))),
    ],
)
def test_expressions(source: str, expected: tree.Expression) -> None:
    assert parse("{{ " + source + " }}") == (tree.Output(expected),)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if a %}x{% elif b %}{% else %}x{% endif %}", tree.If(((A, X), (B, ())), X)),
        (
            "{% for a, b in a if b %}x{% endfor %}",
            tree.For(("a", "b"), True, A, B, X, ()),
        ),
        ("{% set a, b.c = a %}", tree.Set((("a", ""), ("b", "c")), True, A)),
        ("{% set a | b %}x{% endset %}", tree.SetBlock(("a", ""), (("b", NONE),), X)),
        ("{% macro a(b=1) %}x{% endmacro %}", tree.Macro("a", (("b", ONE),), X)),
        ("{% generation %}x{% endgeneration %}", tree.Group(X)),
        (
            "{% for a in b %}{% break %}{% endfor %}",
            tree.For(("a",), False, B, None, (tree.Jump(leaves=True),), ()),
        ),
    ],
)
def test_statements(source: str, expected: tree.Statement) -> None:
    assert parse(source) == (expected,)
