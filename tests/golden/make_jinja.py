"""What jinja2, set up as in transformers, writes of templates that use each part of the language.

    python tests/golden/make_jinja.py

`written` has, for each template, what it writes of each conversation without and with a prompt for
an answer, or null where it refuses.
"""

import json
from pathlib import Path

import jinja2
import transformers
from transformers.utils.chat_template_utils import _compile_jinja_template

CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [
        {"role": "system", "content": " Be  brief. "},
        {"role": "user", "content": "Hi there\n"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."},
        {"role": "user", "content": "\n Why e?"},
    ],
    [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Hex"}],
]
VALUES = {"bos_token": "<s>", "eos_token": "</s>", "tools": None}

# White space around tags, and what stands within them.
SPACES = [
    "a\n{% if true %}\n  b\n{% endif %}\nc\n",
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n\n",
    "a\n  {%- if true -%}\n  b\n  {%- endif -%}\n  c",
    "a\n  {%+ if true %}\n b\n  {%+ endif +%}\nc",
    "a \t {{- 'x' -}} \n\n b {{+ 'y' }}\n  {{ 'z' }}\n",
    "a\n  {# note #}\n b {#- note -#} \n c {#+ note +#}\nd",
    "a {#-#} b {##} c\n{#\n{{ 'not this' }}\n#}\nd",
    "x {% if true %} y {% endif %} z",
    " \t{% if true %}\t\n y{% endif %}",
    "{% if true %}\n\n{% endif %}\n\n",
    "a\r\nb\r{% if true %}\r\nc{% endif %}\r\n",
    "{% raw %}{{ a }} {% x %}{% endraw %}\nb",
    "a\n  {%- raw -%}\n  {{ a }}\n  {%- endraw -%}\n  b",
    "a\n  {% raw %}\n  {{ a }}\n  {% endraw %}\n  b",
    "a\n  {%+ raw %}\n  {{ a }}\n  {%+ endraw +%}\n  b",
    "{{ 'a\\nb\\tc\\\\d\\'e\\\"f' }}|{{ \"\\x41\\u00e9\\U0001F600\\101\\q\" }}|{{ 'a' 'b' \"c\" }}",
    "{{ 'a\nb' }}{{ '%}' }}{{ '}}' }}{% if '%}' %}c{% endif %}",
    "{{ {'a': {'b': 1}}['a']['b'] }}{{ {'a':{'b':2}}.a.b }}",
    "{{ 1_000 }} {{ 1.5 }} {{ 1e3 }} {{ 2.5e-1 }} {{ 0 }} {{ 007 }}",
    "{{1+2*3//4%5-6}}{{1<2}}{{1<=2}}{{1>2}}{{1!=2}}{{1==2}}{{2/4}}{{1~2}}",
    "{ {a} { % { # }} %} #} {{ 'b' }}",
    "{{ messages[0].content }}\n",
    "été {{ 'naïve' }}\u2028{{- 'x' }}",
]
# What binds how.
GRAMMAR = [
    "{{ 1 + 2 * 3 - 4 // 2 }} {{ (1 + 2) * 3 }} {{ 7 % 4 * 2 }} {{ 2 - -3 }} {{ -2 + +1 }}",
    "{{ 'a' ~ 1 + 2 ~ 'b' }} {{ 1 ~ 2 * 3 }} {{ 'x' * 3 ~ 2 }} {{ 10 / 4 }}",
    "{{ not true or true }} {{ not (true or true) }} {{ true or false and false }}",
    "{{ not not 1 }} {{ not not not 0 }} {{ 0 or '' or 'z' }} {{ 1 and 'y' }} {{ 0 and 1 }}",
    "{{ 1 < 2 < 3 }} {{ 1 < 3 < 2 }} {{ 1 == 1 != 2 }} {{ 'a' in 'abc' == true }}",
    "{{ 'a' not in 'bc' }} {{ not 'a' in 'bc' }} {{ 1 in [1, 2] and 3 not in (1, 2) }}",
    "{{ 'y' if true }} {{ 'y' if false }} {{ 'a' if false else 'b' if false else 'c' }}",
    "{{ -1 | abs }} {{ -3 | abs + 1 }} {{ 'a' + 'b' | upper }} {{ ('a' + 'b') | upper }}",
    "{{ 'a' | upper | lower | length }} {{ 'abc'[1] | upper }} {{ 'x'.upper().lower() | upper }}",
    "{{ 1 is odd }} {{ 1 is not odd }} {{ not 1 is odd }} {{ 1 is odd and 2 is even }}",
    "{{ 4 is divisibleby 2 }} {{ 4 is divisibleby(3) }} {{ 'a' is in ['a'] }} {{ x is defined }}",
    "{{ 'b' if x is defined else 'c' }} {{ x is defined or true }} {{ 1 is number == true }}",
    "{{ 3 | string is string }} {{ 'x' is string | string }}",
    "{{ [1, 2, 3][1:] | join }} {{ 'hello'[::-1] }} {{ 'hello'[1:4:2] }} {{ 'hello'[-3:] }}",
    "{{ (1, 2)[0] }} {{ (1,)[0] }} {{ [] | length }} {{ () | length }} {{ {} | length }}",
    "{{ {'a': 1, 'b': 2,}['b'] }} {{ [1, 2,] | length }} {{ {1: 'x'}[1] }} {{ {'a': 1}.a }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (a, b) = [b, a] %}{{ a }}{{ b }}",
    "{% set a = 1, %}{{ a | length }}{% set a %}x{{ 1 }}{% endset %}{{ a }}",
    "{% set a | upper | replace('X', 'y') %}x{% endset %}{{ a }}",
    "{% for a, b in [[1, 2], (3, 4)] %}{{ a }}{{ b }};{% endfor %}",
    "{% for (a, b) in {'x': 1}.items() %}{{ a }}{{ b }}{% endfor %}",
    "{% for a in [1, 2, 3] if a != 2 %}{{ a }}{{ loop.length }}{% else %}no{% endfor %}",
    "{% for a in [] %}{{ a }}{% else %}none{% endfor %}{% for a in 'xy' %}{{ a }}.{% endfor %}",
    "{% if false %}a{% elif true %}b{% else %}c{% endif %}",
    "{% if false %}a{% elif false %}b{% else %}c{% endif %}{% if false %}d{% endif %}",
    "{% macro f(a, b='x', c=b) %}{{ a }}{{ b }}{{ c }};{% endmacro %}"
    "{{ f(1) }}{{ f(1, 2) }}{{ f(1, c=3) }}{{ f() }}{{ f(1, b=5, c=6) }}",
    "{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x is defined }}",
    "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}"
    "{{ i }}{% endfor %}",
    "{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'equalto',"
    " 'user') | list | length }}",
    "{{ none }} {{ None }} {{ True }} {{ false }} {{ [none, true] | tojson }}",
    "{{ 'a' 'b' }} {{ messages[0]['role'] }} {{ messages[-1].role }} {{ messages.0.role }}",
    "{% set ns = namespace(a=1) %}{% for i in range(3) %}{% set ns.a = ns.a + i %}{% endfor %}"
    "{{ ns.a }} {{ ns['a'] }} {{ ns.b is defined }}",
    "{{ 'x' | safe }}",
]
# Operators, filters, tests, methods.
VALUES_OF = [
    "{{ ' a b ' | trim }}|{{ 'xax' | trim('x') }}|{{ 5 | trim }}|{{ nothing | trim }}|",
    "{{ 'abc' | length }} {{ [1, 2] | count }} {{ {'a': 1} | length }} {{ nothing | length }}",
    "{{ 'aBc dE' | upper }} {{ 'aBc' | lower }} {{ 'aBc dE' | capitalize }} {{ 'ß' | upper }}",
    '{{ "it\'s a-test (of) [x] {y} <z>" | title }} {{ "it\'s a-test".title() }}',
    "{{ [1, 'a', none] | join }} {{ ['a', 'b'] | join(', ') }} {{ 'abc' | join('-') }}",
    "{{ messages | join('+', attribute='role') }} {{ [] | join(',') }} {{ nothing | join }}",
    "{{ 'a.b.c' | replace('.', '-') }} {{ 'a.b.c' | replace('.', '', 1) }} {{ 5 | replace(5, 6) }}",
    "{{ [1, 2] | first }} {{ [1, 2] | last }} {{ 'xy' | first }} {{ [] | first }}{{ [] | last }}",
    "{{ 'abc' | list | length }} {{ {'a': 1} | list | first }} {{ nothing | list | length }}",
    "{{ 5 | string ~ 'x' }} {{ none | string }} {{ 1.0 | string }} {{ true | string }}",
    "{{ {'a': 1, 'b': 'x'} | items | list | length }} {{ nothing | items | list | length }}",
    "{{ nothing | default('d') }} {{ '' | default('d') }} {{ '' | default('d', true) }}"
    "{{ none | d('x') }} {{ none | d('x', boolean=true) }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join('|') }}",
    "{{ messages | selectattr('x') | list | length }} {{ messages | selectattr('x', 'defined') |"
    " list | length }} {{ messages | rejectattr('role', 'in', ['user']) | list | length }}",
    "{{ [1, 'a', none, 0] | select | join }} {{ [1, 'a', none] | select('string') | join }} "
    "{{ [1, 2, 3] | reject('odd') | join }} {{ [1, 2, 3] | select('gt', 1) | join(',') }}",
    "{{ ['a', 'b'] | map('upper') | join }} {{ messages | map(attribute='x', default='-') | join "
    "}}",
    "{{ [{'a': {'b': [5]}}] | map(attribute='a.b.0') | join }}",
    "{% if [] | select %}truthy{% endif %} {{ [1] | map('string') is iterable }} "
    "{{ [1] | select is sequence }}",
    "{% set l = [1, 2] | map('string') %}{{ l | join }}{{ l | join }}",
    "{{ '42' | int }} {{ '4.7' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ none | int }} "
    "{{ 'ff' | int(0, 16) }} {{ 3.9 | int }} {{ true | int }}",
    "{{ '1.5' | float }} {{ 'x' | float }} {{ 3 | float }} {{ 'x' | float(2) }}",
    "{{ 2.5 | round }} {{ 2.567 | round(2) }} {{ 2.1 | round(0, 'ceil') }} "
    "{{ 2.9 | round(method='floor') }} {{ 7 | round }} {{ -3 | abs }} {{ 2.5 | abs }}",
    "{{ 'abc' | reverse }} {{ [1, 2, 3] | reverse | join }} {{ [1, 2] | reverse | list | first }}",
    "{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(1, "
    "blank=true) }}"
    "|{{ 'a\nb' | indent('> ') }}|{{ 'a\n' | indent }}|{{ '' | indent }}",
    "{{ {'a': [1, 2.5, none, true], 'b': 'é\"\\n<&>'} | tojson }}",
    "{{ {'b': 1, 'a': [1]} | tojson(indent=2) }} {{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}",
    "{{ {'a': [1, 2]} | tojson(separators=(',', ':')) }} {{ 'é' | tojson(ensure_ascii=true) }}",
    "{{ messages[0] | tojson }} {{ messages[0].content | tojson }} {{ (1, 2) | tojson }}",
    "{{ '  a '.strip() }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'xyax'.strip('xy') }}|",
    "{{ 'a b  c'.split() | join('|') }} {{ ' a b '.split(' ') | join('|') }} "
    "{{ 'a,b,c'.split(',', 1) | join('|') }} {{ 'a,b,c'.rsplit(',', 1) | join('|') }} "
    "{{ ' a  b c '.split(none, 1) | join('|') }} {{ ' a  b c '.rsplit(none, 1) | join('|') }}",
    "{{ 'a\nb\r\nc\n'.splitlines() | join('|') }} {{ 'a\nb\n'.splitlines(true) | length }}",
    "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abc'.startswith('b', 1) }}",
    "{{ 'abcb'.find('b') }} {{ 'abcb'.rfind('b') }} {{ 'abcb'.index('c') }} {{ 'abcb'.count('b') "
    "}}",
    "{{ 'a.b'.replace('.', '') }} {{ '-'.join(['a', 'b']) }} {{ 'aBc'.capitalize() }}",
    "{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('x') }}",
    "{{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ ' '.isspace() }} {{ 'A'.isupper() }} "
    "{{ 'a'.islower() }} {{ 'a1'.isalnum() }} {{ '½'.isnumeric() }}",
    "{{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 'c') }}",
    "{{ {'a': 1, 'b': 2}.keys() | join }} {{ {'a': 1, 'b': 2}.values() | join }} "
    "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% endfor %}",
    "{{ {'items': 5}['items'] }} {{ {'get': 6}.get('get') }} {{ {'a': 1}['b'] is defined }}",
    "{{ nothing is defined }} {{ nothing is undefined }} {{ none is none }} {{ 0 is none }}",
    "{{ 'a' is string }} {{ 1 is string }} {{ {} is mapping }} {{ [] is mapping }}",
    "{{ 'a' is iterable }} {{ 1 is iterable }} {{ {} is sequence }} {{ 'a' is sequence }} "
    "{{ none is iterable }} {{ nothing is iterable }} {{ nothing is sequence }}",
    "{{ 1 is number }} {{ 1.5 is number }} {{ true is number }} {{ 'a' is number }} "
    "{{ true is integer }} {{ 1 is integer }} {{ 1.0 is float }} {{ true is boolean }}",
    "{{ true is true }} {{ 1 is true }} {{ false is false }} {{ 0 is false }}",
    "{{ 1 is odd }} {{ 2 is even }} {{ 9 is divisibleby 3 }} {{ 'a' is lower }} {{ 'A' is upper }}",
    "{{ 1 is eq 1 }} {{ 'a' is equalto 'a' }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 2 is ge 2 }} "
    "{{ 1 is greaterthan 0 }} {{ 1 is lessthan 0 }} {{ 1 is le 1 }} {{ 1 is gt 1 }}",
    "{{ 'a' is in 'abc' }} {{ 1 is in [1] }} {{ 'a' is in {'a': 1} }} {{ raise_exception is "
    "callable }}",
    "{{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' == 'a' }} {{ [1] == [1] }} {{ [1] == (1,) }} "
    "{{ {'a': [1]} == {'a': [1]} }} {{ nothing == nothing }} {{ nothing == none }}",
    "{{ 'a' < 'b' }} {{ 2 >= 1.5 }} {{ true > false }} {{ 'x' in nothing }} {{ 1 in {1: 2} }}",
    "{{ [1] + [2] == [1, 2] }} {{ ((1,) + (2,)) | length }} {{ 3 * 'ab' }} {{ 'ab' * 0 }}|"
    "{{ 7 // 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 7 / 2 }} {{ 1.5 + 1 }}",
    "{{ messages[5] is defined }} {{ messages[0].nope is defined }} {{ none.x is defined }} "
    "{{ 'abc'[9] is defined }} {{ [1]['a'] is defined }}",
    "{{ dict(a=1, b=2) | length }} {{ dict({'a': 1}).a }} {{ range(2, 8, 3) | join(',') }}",
]
# What belongs to a conversation: loops, macros, names that are set, refusals.
TALKS = [
    "{% for m in messages %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ "
    "loop.revindex0 }}"
    "{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.depth0 }}"
    "{{ loop.previtem.role if not loop.first }}{{ loop.nextitem is defined }};{% endfor %}",
    "{% set x = 1 %}{% for m in messages %}{{ x }}{% set x = x + 1 %}{{ x }}{% endfor %}{{ x }}",
    "{% for m in messages %}{% if loop.first %}{% set y = m.role %}{% endif %}{{ y }}{% endfor %}"
    "{{ y is defined }}{% if true %}{% set z = 1 %}{% endif %}{{ z }}{{ loop is defined }}",
    "{% for a in messages %}{% for b in messages %}{{ loop.index }}{% endfor %}{{ loop.index }},"
    "{% endfor %}",
    "{% for m in messages %}{% break %}{% else %}a{% endfor %}"
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% else %}b"
    "{% endfor %}",
    "{% set messages = messages[1:] %}{% for messages in messages %}{{ messages.role }}{% endfor %}"
    "{{ messages | length }}",
    "{% macro say(m, end='.') %}{{ m.role }}: {{ m.content | trim }}{{ end }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{{ say(m, end='!') | upper }}{% endfor %}{{ say() }}",
    "{% set x = 1 %}{% macro f() %}{{ x }}{% set x = 5 %}{{ x }}{% endmacro %}{{ f() }}"
    "{% set x = 2 %}{{ f() }}{{ x }}",
    "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}a",
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{{ m.role }}{% endfor %}",
    "{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    "{{ tools is none }}{{ tools is defined }}{{ documents is defined }}{{ tools }}{{ nothing }}",
    "{{ messages[0].content.nope.more }}",
    "{{ nothing.more }}",
    "{{ nothing + 'a' }}",
    "{{ 'a' + 1 }}",
    "{{ none + 'a' }}",
    "{{ 1 // 0 }}",
    "{{ nothing() }}",
    "{{ 'x'() }}",
    "{{ messages[0].content['a':] }}",
    "{% for a, b in [[1, 2, 3]] %}{% endfor %}",
    "{% for a in 5 %}{% endfor %}",
    "{% set x.y = 1 %}",
    "{% set ns = namespace(_a=1) %}",
    "{% set ns = namespace({'a': 1}, b=2) %}{% set ns.c = ns.a + ns.b %}{{ ns.c }}",
    "{% set ns = namespace(text='') %}{% for m in messages %}{% set ns.text = ns.text + "
    "m.role[0] %}"
    "{% endfor %}{{ ns.text }}",
    "{% set first %}{% for m in messages %}{{ m.role }} {% endfor %}{% endset %}[{{ first | trim "
    "}}]",
    "{% for m in messages %}{% set text = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') if "
    "'</think>' in"
    " m.content else '' %}({{ thought }})[{{ text }}]{% endfor %}",
    "{% for m in messages[::-1] %}{{ (messages | length - 1) - loop.index0 }}{{ m.role }}{% "
    "endfor %}",
    "{% for m in messages %}{%- generation -%} {{ m.content }} {%- endgeneration -%}{% endfor %}",
    "{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' -%}\n  ask\n{%- endif %}",
    "{{- messages | map(attribute='content') | map('length') | join(' ') }}",
    "{% if messages is iterable and messages is not mapping and messages[0].content is string %}ok"
    "{% endif %}",
]
SOURCES = [*SPACES, *GRAMMAR, *VALUES_OF, *TALKS]


def written(source, talk, reply):
    try:
        template = _compile_jinja_template(source)
        return template.render(messages=talk, add_generation_prompt=reply, **VALUES)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError):
        return None


def main():
    golden = {
        "versions": {m.__name__: m.__version__ for m in (jinja2, transformers)},
        "conversations": CONVERSATIONS,
        "values": VALUES,
        "written": {
            source: [
                written(source, talk, reply) for talk in CONVERSATIONS for reply in (False, True)
            ]
            for source in SOURCES
        },
    }
    out = Path(__file__).with_name("jinja.json")
    out.write_text(json.dumps(golden, indent=0) + "\n")
    print(out.name, out.stat().st_size, len(golden["written"]))


if __name__ == "__main__":
    main()
