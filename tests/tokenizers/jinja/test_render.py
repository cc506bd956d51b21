"""Templates against what jinja2 wrote of them, sources of characters, and hostile templates."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minift.errors import ConfigError, FormatError
from minift.tokenizers import chat
from minift.tokenizers.byte_bpe import ByteBPE
from minift.tokenizers.chat_templates import TEMPLATES
from minift.tokenizers.jinja.render import JinjaError, Refused, render
from minift.tokenizers.jinja.traced import runs_of

GOLDEN = json.loads(Path(__file__).parents[2].joinpath("golden/jinja.json").read_text())
NOW = datetime(2024, 2, 3, 16, 5)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hi \n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
]


def write(source: str, talk: list[dict[str, str]] = TALK, **values: Any) -> str:
    return render(source, talk, NOW, **values)


@pytest.mark.parametrize("source", GOLDEN["written"], ids=range(len(GOLDEN["written"])))
def test_a_template_writes_what_jinja2_writes(source: str) -> None:
    expected = iter(GOLDEN["written"][source])
    for talk in GOLDEN["conversations"]:
        for reply in (False, True):
            try:
                found = write(source, talk, add_generation_prompt=reply, **GOLDEN["values"])
            except JinjaError:
                found = None
            assert found == next(expected)


def test_the_golden_has_texts_and_refusals() -> None:
    rows = [row for rows in GOLDEN["written"].values() for row in rows]
    assert len(GOLDEN["written"]) > 140
    assert 60 < rows.count(None) < len(rows) / 4


def parts(source: str, talk: list[dict[str, str]] = TALK, **values: Any) -> list[tuple[str, int]]:
    text, found, at = render(source, talk, NOW, **values), [], 0
    for count, source_ in runs_of(text):
        found.append((text[at : at + count], source_))
        at += count
    return found


def test_each_character_knows_whose_it_is() -> None:
    assert parts("<{{ messages[1].content }}>") == [("<", 0), (" Hi \n", 2), (">", 0)]
    for source, expected in {
        "{{ 'a' + messages[1].content.strip() ~ 1 }}": [("a", 0), ("Hi", 2), ("1", 0)],
        "{{ messages[1].content[1:2] }}{{ messages[1].role }}": [("H", 2), ("user", 0)],
        "{{ messages[1].content[::-1] }}": [("\n iH ", 2)],
        "{% for c in messages[1].content if c | trim %}{{ c }}.{% endfor %}": [
            *(("H", 2), (".", 0), ("i", 2), (".", 0)),
        ],
        "{% set x = messages[0].content ~ '|' ~ messages[1].content %}{{ x | upper }}": [
            *(("BE BRIEF.", 1), ("|", 0), (" HI \n", 2)),
        ],
        "{{ (messages[2].content | replace('\n', '__')).split('_</th')[0] }}": [
            *(("<think>", 3), ("__", 0), ("hm", 3), ("_", 0)),
        ],
        "{{ [messages[0].content, messages[1].content] | map('trim') | join('+') }}": [
            *(("Be brief.", 1), ("+", 0), ("Hi", 2)),
        ],
        "{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f(messages[1].content | trim) | title }}": [
            *(("<", 0), ("Hi", 2), (">", 0)),
        ],
        "{{ messages[1] | tojson }}": [('{"role": "user", "content": " Hi \\n"}', 2)],
        "{% set x %}a{{ messages[0].content }}{% endset %}{{ x | indent }}": [
            *(("a", 0), ("Be brief.", 1)),
        ],
        "{{ messages[1].content | length }}{{ bos }}": [("5<s>", 0)],
        "{{ messages[2].content.split('</think>')[-1].lstrip('\n') }}": [("Yes.", 3)],
        "{{ messages[2].content.splitlines()[1].replace('', '') if false else 'x' }}": [("x", 0)],
    }.items():
        assert parts(source, bos="<s>") == expected, source


def test_dates_are_of_the_time_that_was_given() -> None:
    assert write("{{ strftime_now('%d %b %Y, %H:%M %%') }}") == "03 Feb 2024, 16:05 %"
    for form in ("%1000000000d", "%-d", "%Q", "%", "%n" * 60):
        with pytest.raises(JinjaError, match="of a date"):
            write("{{ strftime_now('" + form + "') }}")


def test_a_refusal_says_what_the_template_says() -> None:
    with pytest.raises(Refused, match=r"^no Be brief\.$"):
        write("{{ raise_exception('no ' + messages[0].content) }}")


NEVER = """
{{ x.__class__ }} {{ ''.__class__.__mro__ }} {{ messages.append(1) }} {{ messages[0].update(a=1) }}
{{ 'a'.format(1) }} {{ '{0.__class__}'.format('') }} {{ messages[0].pop('role') }}
{{ 'a'.encode() }} {{ f.__globals__ }} {{ range.__call__ }} {{ namespace.__init__ }}
{{ self }} {{ cycler('a') }}
{{ lipsum() }} {{ joiner(',') }} {{ caller() }} {{ messages | attr('__class__') }} {{ 1 | pprint }}
{{ 'a' | e }} {{ messages | random }} {{ loop.cycle(1) }} {{ (1).real }} {{ 1.5.hex }}
{{ 'a' is nothing }} {{ 'a' | nothing }} {{ messages }} {{ messages[0] }} {{ namespace(a=1) }}
{{ range }} {{ 'a'.upper }} {{ [] ~ 'a' }} {{ 'a%s' % 'b' }} {{ dict.fromkeys('a') }}
"""


@pytest.mark.parametrize(
    "source", ["{{" + part for part in NEVER.replace("\n", " ").split("{{")[1:]]
)
def test_what_is_never_done(source: str) -> None:
    with pytest.raises(JinjaError):
        write("{% macro f() %}{% endmacro %}{% set x = '' %}" + source)


DOUBLED = "{% set ns = namespace(x=[1], s='ab', d={}, l=[1]) %}{% for i in range(99) %}"
HOSTILE = {
    "a long text": "a" * 300_000,
    "open brackets": "{{ " + "(" * 100_000,
    "nested brackets": "{{ " + "(" * 60_000 + "1" + ")" * 60_000 + " }}",
    "nested lists": "{{ " + "[" * 60_000 + "]" * 60_000 + " }}",
    "nested blocks": "{% if true %}" * 18_000,
    "nested loops": "{% for a in messages %}" * 10_000,
    "signs": "{{ " + "-" * 200_000 + "1 }}",
    "subscripts": "{{ messages" + "[0]" * 80_000 + " }}",
    "filters": "{{ 'a'" + "|trim" * 50_000 + " }}",
    "choices": "{{ 1" + " if 0 else 1" * 20_000 + " }}",
    "an open tag": "{{ " + "a " * 100_000,
    "open tags": "{{" * 130_000,
    "an open string": "{{ '" + "\\'" * 100_000,
    "digits": "{{ " + "9" * 200_000 + " }}",
    "digits and underscores": "{{ " + "9_" * 100_000 + " }}",
    "blanks": "{{ a " + " " * 260_000 + " b }}",
    "raw blocks": "{% raw %}" * 29_000,
    "comments": "{#" * 130_000,
    "a range": "{% for i in range(1000000000) %}{% endfor %}",
    "ranges": "{{ range(100000000) | length }}",
    "a negative range": "{{ range(0, -1000000000000, -1) | length }}",
    "text times a number": "{{ 'a' * 1000000000 }}",
    "a number times text": "{{ 100000000000000000 * 'abc' }}",
    "nothing times a number": "{{ '' * 100000000000000000 }}",
    "a list times a number": "{{ [1] * 1000000000 }}",
    "a large number": "{% set ns = namespace(x=2) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a format": "{{ '%1000000000d' % 1 }}",
    "a format by a test": "{{ '%1000000000d' is odd }}",
    "a doubled text": DOUBLED + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "a doubled text by +": DOUBLED + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "a doubled text by replace": DOUBLED + "{% set ns.s = ns.s.replace('a', 'aa') %}{% endfor %}",
    "a doubled text by join": DOUBLED + "{% set ns.s = ns.s | join(ns.s) %}{% endfor %}",
    "a doubled text by tojson": DOUBLED + "{% set ns.s = [ns.s, ns.s] | tojson %}{% endfor %}",
    "a doubled text by a block": DOUBLED
    + "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "a doubled list": DOUBLED + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a list in lists": DOUBLED + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "lists in lists compared": DOUBLED + "{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.l = [ns.l, ns.l] %}"
    "{% endfor %}{{ ns.x == ns.l }}",
    "lists in lists looked for": DOUBLED + "{% set ns.x = [ns.x, ns.x] %}"
    "{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.x in [ns.l] }}",
    "a deep list": "{% set ns = namespace(x=[]) %}{% for i in range(9000) %}{% set ns.x = [ns.x] %}"
    "{% endfor %}{{ ns.x | tojson }}",
    "deep lists compared": "{% set ns = namespace(x=[], y=[]) %}{% for i in range(4000) %}"
    "{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "an indentation": "{{ 'a\nb' | indent(1000000000) }}",
    "an indentation of a long text": "{% set x = 'ab' * 400000 %}{{ 'a\nb\nc\nd' | indent(x) }}",
    "JSON's indentation": "{{ [1] | tojson(indent=1000000000) }}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a macro that calls itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}"
    "{% endif %}{% endmacro %}{{ f(15) }}",
    "macros that double": "".join(
        f"{{% macro f{n}() %}}{{{{ f{n - 1}() }}}}{{{{ f{n - 1}() }}}}{{% endmacro %}}"
        for n in range(1, 15)
    )
    + "{% macro f0() %}" + "a" * 9999 + "{% endmacro %}{{ f14() }}",
    "a default that calls": "{% macro f(x=f()) %}{% endmacro %}{{ f() }}",
    "loops in loops": "{% for a in range(999) %}" * 4 + "{% endfor %}" * 4,
    "a loop over characters": "{% set x = 'a' * 500000 %}{% for c in x %}{{ c }}{% endfor %}",
    "loops over a long text": "{% set x = 'a' * 500000 %}{% for i in range(99999) %}"
    "{{ x.find('b') }}{% endfor %}",
    "a split long text": "{% set x = 'a ' * 500000 %}{{ x.split() | length }}",
    "a text split often": "{% set x = 'a ' * 9000 %}{% for i in range(999) %}"
    "{% set y = x.split(' ') | join(' ') %}{% endfor %}",
    "a long output": "{% set x = 'a' * 900000 %}{{ x }}{{ x }}",
    "a date": "{{ strftime_now('%1000000000d') }}",
    "dates": "{% for i in range(49000) %}{{ strftime_now('%c%c%c') }}{% endfor %}",
    "a number as text": "{{ ('9' * 100000) | int }}" * 3 + "{{ nothing.x }}",
    "an infinite number": "{{ (1e300 * 1e300) | int }}",
    "digits to round to": "{{ 1.5 | round(1000000000) }}",
    "nothing": "",
    "no messages": "Hello",
    "a lone end": "{% endfor %}",
    "control characters": "{{ raise_exception('a\\x00\\x1b[2Jb\\u202e' ~ 'x' * 5000) }}",
    "control characters in its text": "\x1b[2J{{ nothing.\x00 }}",
    "a half of a pair": "{{ '\\ud800' }}{{ messages[0].content }}",
    "a secret": "{{ messages.__class__.__mro__ }}",
}  # fmt: skip


HARMLESS = ("nothing", "no messages", "a half of a pair")  # but of no use for a chat


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in HARMLESS])
def test_a_hostile_template_ends_soon(name: str) -> None:
    begin = time.process_time()
    with pytest.raises(JinjaError):
        write(HOSTILE[name])
    assert time.process_time() - begin < 1


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py: each as the template of a tokenizer that is to write a conversation."""

    golden = json.loads(Path(__file__).parents[2].joinpath("golden/tokens.json").read_text())

    def attempt(folder: Path, source: str) -> None:
        config = {"eos_token": "<|im_end|>", "chat_template": source}
        tokenizer = ByteBPE.from_json(golden["tokenizer"], config, "tokenizer.json")
        assert chat.name_of(tokenizer) is None
        assert chat.ends(tokenizer) == {tokenizer.eos}
        tokenizer.chat([TALK[1]], True)

    codes = {"a half of a pair": "EncodeError"}
    return {
        name: (partial(attempt, source=source), codes.get(name, "config"))
        for name, source in HOSTILE.items()
    }


def mutated(draw: random.Random) -> bytes:
    """A template that was valid once: some of its bytes replaced, left out or doubled."""
    data = bytearray(
        draw.choice([*GOLDEN["written"], *(row.jinja for row in TEMPLATES.values())]).encode()
    )
    words = [b"{{", b"}}", b"{%", b"%}", b"{#", b"-", b"(", b")", b"[", b"]", b"'", b"|", b".",
             b"~",
             b" if ", b" else ", b" in ", b" not ", b" is ", b" for ", b"messages", b"loop",
             b"99999999",
             b"* 99999", b"range(99999)", b"|tojson", b"|list", b"|indent", b"\\",
             b"\xff"]  # fmt: skip
    for _ in range(draw.randint(1, 2)):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(4):
            case 0:
                data[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                del data[at : at + draw.randint(1, 9)]
            case 2:
                data[at:at] = draw.choice(words)
            case 3:
                begin = draw.randrange(len(data) + 1)
                data[at:at] = data[begin : begin + draw.randint(1, 60)]
    return bytes(data)


def read_mutated(data: bytes) -> None:
    """What a template writes; a FormatError where it does not."""
    try:
        write(data.decode(errors="replace"), bos_token="<s>", eos_token="</s>", tools=None)
    except JinjaError as error:
        raise FormatError("template", "text", str(error), "a chat template", "bad-type") from None


def test_fuzz() -> None:
    draw, refused = random.Random(0), 0
    for _ in range(3000):
        try:
            read_mutated(mutated(draw))
        except FormatError:
            refused += 1
    assert 1000 < refused < 2700


def test_hostile_templates_are_refused_by_the_chat() -> None:
    attempt, _ = hostile()["no messages"]
    with pytest.raises(ConfigError, match="leaves out message 1"):
        attempt(Path())
