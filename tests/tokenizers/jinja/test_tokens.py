"""White space around tags as Jinja has it, the tokens within them, and texts that are none."""

from __future__ import annotations

import pytest

from minift.tokenizers.jinja.tokens import LONGEST, MOST_TOKENS, JinjaError, tokens_of

WRONG = {
    "{{ 'a }}": "within a tag",
    "{{ a": "found 'the end' within a tag",
    "{% if a": "within a tag",
    "{# a": "a comment without an end",
    "{% raw %} a": "a raw block without an end",
    "{{ a ) }}": "closes nothing",
    "{{ (a] }}": "closes nothing",
    "{{ a ? b }}": "found '\\? b }}' within a tag",
    "{{ 'a\\x4' }}": "the escape",
    "{{ 'a\\uD' }}": "the escape",
    "{{ 'a\\UFFFFFFFF' }}": "the escape",
    "{{ 'a\\N{DIGIT ONE}' }}": "the escape",
    "x" * (LONGEST + 1): "allowed 262,144",
    "{{ " + "a " * MOST_TOKENS + "}}": "over 10,000 words and signs",
}


@pytest.mark.parametrize("source", WRONG, ids=range(len(WRONG)))
def test_what_is_no_template(source: str) -> None:
    with pytest.raises(JinjaError, match=WRONG[source]):
        tokens_of(source)


def test_tokens() -> None:
    found = [(token.kind, token.value) for token in tokens_of("a {%- if b.c == 'd' %}\n{{ 1.5 }}")]
    assert found == [
        *(("text", "a"), ("{%", "{%"), ("name", "if"), ("name", "b"), ("operator", ".")),
        *(("name", "c"), ("operator", "=="), ("string", "d"), ("%}", "%}"), ("{{", "{{")),
        *(("float", "1.5"), ("}}", "}}"), ("end", "the end")),
    ]
