"""What is refused while a template is read; what binds how is in the golden of test_render.py."""

from __future__ import annotations

import pytest

from minift.tokenizers.jinja.parse import parse
from minift.tokenizers.jinja.tokens import JinjaError

WRONG = {
    "{% include 'x' %}": "the statement 'include'",
    "{% extends x %}": "the statement 'extends'",
    "{% call f() %}{% endcall %}": "the statement 'call'",
    "{% if a %}": "found 'the end', allowed elif or else or endif",
    "{% endif %}": "the statement 'endif'",
    "{% for a in b %}": "allowed else or endfor",
    "{% for a b %}{% endfor %}": "allowed 'in'",
    "{% for a.b in c %}{% endfor %}": "a loop over an attribute",
    "{% for a in b recursive %}{% endfor %}": "found 'recursive'",
    "{% break %}": "the statement 'break'",
    "{% for a in b %}{% macro f() %}{% break %}{% endmacro %}{% endfor %}": "the statement 'break'",
    "{% set = 1 %}": "an assignment to nothing",
    "{% set true = 1 %}": "an assignment to true",
    "{% set a, b %}{% endset %}": "a block that sets two names",
    "{% set 1 = 2 %}": "found '1', allowed a name",
    "{% macro f(a=1, b) %}{% endmacro %}": "without a default",
    "{{ }}": "found '}}', allowed a value",
    "{{ a b }}": "found 'b', allowed '}}'",
    "{{ a. }}": "allowed a name",
    "{{ a[] }}": "allowed an index",
    "{{ a[1:2:3:4] }}": "more than three parts",
    "{{ f(a=1, 2) }}": "behind one with a name",
    "{{ a is b is c }}": "a test of a test",
    "{{ a is not }}": "allowed a name",
    "{{ 2 ** 3 }}": "found '\\*\\*'",
    "{{ f(*a) }}": "found '\\*'",
    "{{ {'a' 1} }}": "allowed ':'",
    "{{ [1 2] }}": "allowed ','",
    "{{ 1000000000000000000000 }}": "the number",
    "{{ 0x10 }}": "found 'x10'",
    "{{ a;b }}": "found ';'",
    "{{ " + "(" * 100_000: "over 10,000 words",
    "{{ " + "(" * 1_000 + "a" + ")" * 1_000 + " }}": "nested too deeply",
    "{{ " + "[" * 1_000 + "]" * 1_000 + " }}": "nested too deeply",
    "{{ " + "-" * 1_000 + "1 }}": "nested too deeply",
    "{{ a" + "[0]" * 1_000 + " }}": "behind each other",
    "{{ a" + "|trim" * 1_000 + " }}": "behind each other",
    "{{ a" + " if b else c" * 1_000 + " }}": "nested too deeply",
    "{{ " + "a[" * 1_000 + "0" + "]" * 1_000 + " }}": "nested too deeply",
    "{% if a %}" * 1_000 + "{% endif %}" * 1_000: "nested too deeply",
    "{% for a in b %}" * 1_000: "nested too deeply",
}


@pytest.mark.parametrize("source", WRONG, ids=range(len(WRONG)))
def test_what_is_refused_when_it_is_read(source: str) -> None:
    with pytest.raises(JinjaError, match=WRONG[source]):
        parse(source)


def test_long_is_not_deep() -> None:
    parse("{{ a" + " + a" * 4_000 + " }}")
    parse("{{ a" + " and not a" * 3_000 + " }}")
    parse("{% if a %}" + "{% elif a %}" * 1_000 + "{% endif %}")
