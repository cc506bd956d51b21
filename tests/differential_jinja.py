"""minift's Jinja against jinja2 as transformers sets it up, on random templates and on real ones.

    python tests/differential_jinja.py --count 20000 [--seed 1] [--folders DIR ...]

Needs transformers and jinja2. Where both write a text, it must be the same one. What only jinja2
writes must be of a reason that NOT_READ lists; what only minift writes is wrong. With --folders,
the
chat template of every folder below is rendered on more conversations.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from minift.tokenizers.jinja import render as jinja  # noqa: E402

GOLDEN = json.loads(HERE.joinpath("golden/jinja.json").read_text())
NOT_READ = (
    "writes a list, a dict or a function",  # Python's repr
    "does too much",
    "nested too deeply",
    "behind each other",
    "of a date",
    "the method",
    "JSON of",
    "slice of",  # of a constant number, which Jinja computes while it reads the template
    "%",  # Python's format
)

MORE_TALKS = [
    [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    for roles in (
        ("user", "assistant") * 3,
        ("system", *("user", "assistant") * 3),
        ("user", "user", "assistant", "assistant", "user"),
        ("assistant", "user", "system", "user", "assistant"),
        ("user", "assistant", "system", "user", "system"),
        ("system", "system", "assistant", "user", "assistant"),
    )
    for texts in (
        (" Hi \n",),
        ("\nHi", "Yes. \n"),
        ("Hi", " <think>\n\nHm.\n\n</think>\n\nYes.", "Why?", "<think>a</think>", "é灯 😀"),
        ("<|im_end|>", "</think> a </think>\nb", "<tool_response>x</tool_response>", "No. "),
        ("  ", "\n", "a\r\nb", "{{ c }}", "{% d %}", "<think>e"),
    )
]


def theirs(source: str, messages: list[dict[str, str]], **values: Any) -> str | Exception:
    try:
        return str(_compile_jinja_template(source).render(messages=messages, **values))
    except Exception as error:
        return error


def ours(source: str, messages: list[dict[str, str]], **values: Any) -> str | Exception:
    try:
        return str(jinja.render(source, messages, datetime.now(), **values))
    except jinja.JinjaError as error:
        return error


class Author:
    """Writes templates: `depth` is how much may still stand within what is written next."""

    TEXTS = ("'x'", '" Yes\\n"', "''", "'<|im_end|>'", "' a b '", "'role'", "'\\t\\'q\\\\'", "'é'")

    def __init__(self, draw: random.Random):
        self.draw = draw

    def one(self, *choices: Any) -> Any:
        choice = self.draw.choice(choices)
        return choice

    def sign(self) -> str:
        return self.draw.choice(("", "", "", "-", "+"))

    def tag(self, inside: str) -> str:
        space = self.draw.choice((" ", " ", "  ", "\n "))
        end = self.draw.choice(("", "", "-", "+"))
        return f"{{%{self.sign()}{space}{inside}{space or ' '}{end}%}}"

    def text(self) -> str:
        return self.one("x", " ", "\n", "\n\n", "  \n  ", "word ", "\n    ", "\t", "{ }", "a%b", "")

    def body(self, depth: int, loop: bool = False) -> str:
        count = self.draw.randrange(1, 4)
        return (
            "".join(self.text() + self.statement(depth, loop) for _ in range(count)) + self.text()
        )

    def statement(self, depth: int, loop: bool) -> str:
        if depth <= 0 or self.draw.random() < 0.4:
            end = self.draw.choice(("", "", "-"))
            return f"{{{{{self.one('', '', '-')} {self.value(depth + 1)} {end}}}}}"
        d = depth - 1
        kind = self.draw.randrange(9 if loop else 8)
        if kind == 0:
            parts = [self.tag("if " + self.truth(2)), self.body(d, loop)]
            if self.draw.random() < 0.4:
                parts += [self.tag("elif " + self.truth(2)), self.body(d, loop)]
            if self.draw.random() < 0.5:
                parts += [self.tag("else"), self.body(d, loop)]
            return "".join([*parts, self.tag("endif")])
        if kind in (1, 2):
            over = self.one("message in messages", f"n in range({self.draw.randrange(4)})",
                            "message in messages[::-1]", f"b in {self.mixed(self.items, 1)}",
                            "a, b in {'k': 1, 'l': 'v'}.items()",
                            "b in messages if b.role != 'user'",
                            "m in messages | selectattr('role', 'equalto', 'user')")  # fmt: skip
            parts = [self.tag("for " + over), self.body(d, True)]
            if self.draw.random() < 0.3:
                parts += [self.tag("else"), self.body(d, loop)]
            return "".join([*parts, self.tag("endfor")])
        if kind == 3:
            name = self.one("a", "b", "n", "ns.x", "ns.y")
            return self.tag(f"set {name} = {self.one(self.value, self.items)(2)}")
        if kind == 4:
            name = self.one("a", "b", "b | trim", "ns.x")
            return self.tag("set " + name) + self.body(d) + self.tag("endset")
        if kind == 5:
            head = self.one("f(a)", "f(a, b='z')", "f()", "f(a=1, n=messages)")
            called = self.one("f('q')", "f('q', b=n)", "f()", "f(a='u')", "f('q', 'r')")
            macro = self.tag("macro " + head) + self.body(d) + self.tag("endmacro")
            return f"{macro}{{{{ {called} }}}}"
        if kind == 6:
            return self.tag("generation") + self.body(d) + self.tag("endgeneration")
        if kind == 7:
            return f"{{#{self.sign()} {{{{ a }}}} {self.one('', '-', '+')}#}}"
        return (
            self.tag("if " + self.truth(1))
            + self.tag(self.one("break", "continue"))
            + self.tag("endif")
        )

    def value(self, depth: int) -> str:
        """Any value; one in twelve is of a kind that does not fit where it stands."""
        return self.one(self.string, self.string, self.truth, self.number)(depth)

    def mixed(self, right: Callable[[int], str], depth: int) -> str:
        return self.value(depth) if self.draw.random() < 0.03 else right(depth)

    def string(self, depth: int) -> str:
        if depth <= 0:
            return self.one(*self.TEXTS, *self.TEXTS, "a", "message.content", "message['role']",
                            "b",
                            "messages[0].content", "messages[-1]['role']", "ns.y", "bos_token",
                            "loop.previtem.role")  # fmt: skip
        s = self.mixed(self.string, depth - 1)
        kind = self.draw.randrange(8)
        if kind == 0:
            return f"{s} {self.one('+', '~')} {self.mixed(self.string, depth - 1)}"
        if kind == 1:
            return f"{self.mixed(self.value, depth - 1)} ~ {s}"
        if kind == 2:
            return f"({s} if {self.truth(depth - 1)} else {self.string(depth - 1)})"
        if kind == 3:
            bounds = self.one("1:", ":-1", "::-1", "0", "-1", ":2", "1:3", "::2", "-3:", "5:1:-1")
            return f"({s})[{bounds}]"
        if kind == 4:
            name = self.one("trim", "upper", "lower", "title", "capitalize", "first", "last",
                            "string",
                            "replace('e', 'EE')", "default('d')", "default('d', true)", "tojson",
                            "d",
                            "indent(2)", "indent(2, true)", "trim('x ')", "reverse",
                            "replace('\\n', '|')",
                            "indent(1, blank=true)", "list | join('.')")  # fmt: skip
            return f"({s}) | {name}"
        if kind == 5:
            name = self.one("strip()", "lstrip()", "rstrip('\\n')", "split('a', 1)[0]", "upper()",
                            "title()", "replace('i', '')", "rsplit(' ', 1)[-1]", "lstrip('\\n')",
                            "split('</think>')[-1]", "split('</think>')[0].rstrip('\\n')",
                            "lower()",
                            "removeprefix('H')", "removesuffix('.')", "capitalize()", "strip('x.')",
                            "replace(' ', '', 1)", "split()[0]")  # fmt: skip
            return f"({s}).{name}"
        if kind == 6:
            return f"{self.mixed(self.items, depth - 1)} | " + self.one(
                "join(', ')", "join('-', attribute='role')", "first", "last", "join", "tojson",
                "map('upper') | join('|')", "tojson(indent=2)", "map('trim') | first",
                "tojson(separators=(',', ':'), sort_keys=true)",
            )  # fmt: skip
        return self.one("strftime_now('%d %b %Y')", "ns.x", "dict(a='q').a", "none", "nothing")

    def number(self, depth: int) -> str:
        if depth <= 0:
            return self.one("0", "1", "2", "3", "17", "1.5", "n", "loop.index", "loop.revindex0",
                            "n",
                            "loop.index0", "loop.length", "1_000")  # fmt: skip
        kind = self.draw.randrange(5)
        if kind == 0:
            sign = self.one("+", "-", "*", "//", "%", "/")
            return f"{self.number(depth - 1)} {sign} {self.mixed(self.number, depth - 1)}"
        if kind == 1:
            return f"{self.one(self.string, self.items)(depth - 1)} | {self.one('length', 'count')}"
        if kind == 2:
            name = self.one("int", "float", "round(1)", "abs", "int(5)", "round(0, 'ceil')", "d(1)")
            return f"({self.number(depth - 1)}) | {name}"
        if kind == 3:
            return f"({self.string(depth - 1)}).{self.one('find', 'count', 'rfind')}('i')"
        return f"{self.one('-', '+', '')}{self.number(0)}"

    def truth(self, depth: int) -> str:
        if depth <= 0:
            return self.one("true", "false", "loop.first", "loop.last", "add_generation_prompt",
                            "tools",
                            "a is defined", "messages[0].role == 'system'", "True",
                            "none")  # fmt: skip
        kind = self.draw.randrange(6)
        left = self.value(depth - 1)
        if kind == 0:
            sign, side = self.one(("==", self.value), ("!=", self.value), ("in", self.items),
                                  ("not in", self.items))  # fmt: skip
            return f"{left} {sign} {side(depth - 1)}"
        if kind == 1:
            sign = self.one("<", ">=", "<=", ">", "==", "!=")
            return f"{self.number(depth - 1)} {sign} {self.number(depth - 1)}"
        if kind == 2:
            return f"({self.truth(depth - 1)} {self.one('and', 'or', 'and not')} {left})"
        if kind == 3:
            return f"not {self.one(self.truth, self.items)(depth - 1)}"
        if kind == 4:
            name = self.one("startswith('H')", "endswith(('x', 'i'))", "isdigit()", "isspace()")
            return f"({self.string(depth - 1)}).{name}"
        name = self.one("defined", "undefined", "none", "string", "mapping", "iterable", "sequence",
                        "number", "integer", "float", "boolean", "true", "false", "eq 1", "lower",
                        "equalto('x')", "in ['x', 1]", "not defined", "not string", "ne 'x'",
                        "callable",
                        "upper", "not none")  # fmt: skip
        return f"({left}) is {name}"

    def items(self, depth: int) -> str:
        if depth <= 0:
            return self.one("messages", "messages", "[]", "()", "{}", "message", "message.content",
                            "range(3)|list", "'ab'", "nothing")  # fmt: skip
        kind = self.draw.randrange(5)
        if kind == 0:
            return f"messages[{self.one('1:', ':-1', '::-1', '-1:', ':2')}]"
        if kind == 1:
            name = self.one("map(attribute='content')", "selectattr('role', 'equalto', 'user')",
                            "list",
                            "rejectattr('x', 'defined')", "selectattr('role', 'in', ['user'])",
                            "map(attribute='role')", "reverse", "reject('none')",
                            "select('mapping')")  # fmt: skip
            return f"(messages | {name}{self.one('', ' | list')})"
        if kind == 2:
            name = self.one("split('e')", "split()", "splitlines()", "split(None, 1)",
                            "rsplit('e', 1)",
                            "splitlines(true)", "split('\\n')")  # fmt: skip
            return f"({self.string(depth - 1)}).{name}"
        if kind == 3:
            return self.one("message.keys()|list", "message.values()|list", "message.items()|list",
                            "message|items|list", "range(1, 6, 2)|list",
                            "[message, 1]")  # fmt: skip
        v = self.value
        return self.one(f"[{v(depth - 1)}, {v(depth - 1)}]", f"({v(depth - 1)}, {v(depth - 1)})",
                        f"{{'a': {v(depth - 1)}, 'role': {v(depth - 1)}}}",
                        "[1] + ['x']")  # fmt: skip

    def template(self) -> str:
        head = self.one("{% set ns = namespace(x='1', y='') %}", "{%- set ns = namespace() -%}\n")
        head += self.one("{% set a = ' A b\\n' %}", "") + self.one("{% set n = 2 %}\n", "")
        head += "{%- set message = messages[0] %}"
        return head + self.body(self.draw.randrange(1, 4))


def real(folders: list[Path]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The name, the template and the token names of each folder's tokenizer_config.json."""
    for folder in folders:
        for path in sorted(folder.rglob("tokenizer_config.json")):
            config = json.loads(path.read_text())
            template = config.get("chat_template")
            for name in ("chat_template.jinja", "chat_template.json"):
                if (beside := path.with_name(name)).exists():
                    text = beside.read_text()
                    template = text if name.endswith("a") else json.loads(text)["chat_template"]
            names = {key: config.get(key) for key in ("bos_token", "eos_token")}
            names = {
                key: value["content"] if isinstance(value, dict) else value
                for key, value in names.items()
                if value
            }
            if isinstance(template, str):
                yield path.parent.name, template, names


def main() -> int:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=5_000, help="random templates")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folders", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    author, found, wrong = Author(random.Random(options.seed)), Counter[str](), []
    work = [("", author.template(), {"bos_token": "<s>"}) for _ in range(options.count)]
    work += [("", source, {"bos_token": "<s>"}) for source in GOLDEN["written"]]
    for name, source, values in [*work, *real(options.folders)]:
        talks = [*GOLDEN["conversations"], *MORE_TALKS] if name else GOLDEN["conversations"]
        for talk in talks:
            for reply in (False, True):
                given = values | {"add_generation_prompt": reply}
                if name:
                    given |= {"tools": None, "documents": None}
                a, b = ours(source, talk, **given), theirs(source, talk, **given)
                if isinstance(a, Exception) and isinstance(b, Exception):
                    found["refused by both"] += 1
                elif isinstance(a, Exception):
                    reason = next((reason for reason in NOT_READ if reason in str(a)), None)
                    found[f"not read: {reason}"] += 1
                    if reason is None or name:
                        wrong.append(f"{name or repr(source)}: {a}; jinja2 writes {b!r}")
                elif a != b:
                    found["wrong"] += 1
                    wrong.append(f"{name or repr(source)}\n  minift: {a!r}\n  jinja2: {b!r}")
                else:
                    found["the same" + (", of real templates" if name else "")] += 1
    for what, count in found.most_common():
        print(f"{count:>9,}  {what}")
    unique = list({re.sub(r"\s+", " ", line)[:2000]: line for line in wrong}.values())
    print("\n".join(sorted(unique, key=len)[:20]), file=sys.stderr, end="\n" if wrong else "")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
