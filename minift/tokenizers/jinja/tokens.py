"""A Jinja text in tokens: the text between the tags, and the words and signs within them.

White space is handled as transformers sets Jinja up for chat templates (trim_blocks,
lstrip_blocks): a line break right after a block or a comment goes, and so does the indentation
before one; "-" beside a tag takes all the white space on that side, "+" leaves it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# The largest published templates seen have 17,149 characters and 1,212 tokens.
LONGEST, MOST_TOKENS = 256 << 10, 10_000


class JinjaError(Exception):
    """A template that minift cannot render, or that refuses what it was given: one line."""


@dataclass(frozen=True, slots=True)
class Token:
    kind: str  # text; {{ }} {% %}; name, string, integer, float, operator; end
    value: str

    def is_one_of(self, *values: str) -> bool:
        """True for such a name or operator."""
        return self.kind in ("name", "operator") and self.value in values


_TAG = re.compile(r"\{[%{#]")
_INSIDE = re.compile(
    r"""(?P<space>\s+)
    | (?P<float>(?<!\.)(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?[eE][+\-]?(?:\d+_)*\d+|\.(?:\d+_)*\d+))
    | (?P<integer>[1-9](?:_?\d)*|0(?:_?0)*)
    | (?P<name>[^\W\d]\w*)
    | (?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<operator>//|\*\*|==|!=|>=|<=|[-+*/%~\[\](){}<>=.:|,;])""",
    re.VERBOSE | re.DOTALL,
)
_END = {
    "{%": re.compile(r"\+%\}|-%\}\s*|%\}\n?"),
    "{{": re.compile(r"-\}\}\s*|\}\}"),
    "{#": re.compile(r"\+#\}|-#\}\s*|#\}\n?"),
}
_RAW = re.compile(r"\{%(?P<begin>[-+]?)\s*raw\s*(?:-%\}\s*|%\})")
_END_RAW = re.compile(r"\{%(?P<begin>[-+]?)\s*endraw\s*(?:\+%\}|-%\}\s*|%\}\n?)")
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_ESCAPE = re.compile(
    r"\\(?:(?P<sign>[\n\\'\"abfnrtv])|(?P<octal>[0-7]{1,3})"
    r"|x(?P<x>[0-9a-fA-F]{2})|u(?P<u>[0-9a-fA-F]{4})|U(?P<U>[0-9a-fA-F]{8})|(?P<bad>[xuUN]))"
)
_SIGNS = dict(zip("\n\\'\"abfnrtv", ("", *"\\'\"\a\b\f\n\r\t\v"), strict=True))


def tokens_of(source: str) -> list[Token]:
    """The tokens of a template, with one of kind "end" behind them."""
    if len(source) > LONGEST:
        raise JinjaError(f"it has {len(source):,} characters, allowed {LONGEST:,}")
    source = source.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    found: list[Token] = []
    at, line_starts = 0, True
    while tag := _TAG.search(source, at):
        opening, raw = tag[0], _RAW.match(source, tag.start())
        sign = source[tag.end() : tag.end() + 1]
        inside = tag.end() + (sign == "-" or sign == "+")
        _add_text(found, _before(source[at : tag.start()], opening, sign, line_starts))
        if raw:
            end = _END_RAW.search(source, raw.end())
            if end is None:
                raise JinjaError("a raw block without an end")
            text = source[raw.end() : end.start()]
            _add_text(found, _before(text, "{%", end["begin"], raw[0].endswith("\n")))
        elif opening == "{#":
            end = _END["{#"].search(source, inside)
            if end is None:
                raise JinjaError("a comment without an end")
        else:
            found.append(Token(opening, opening))
            end = _read_inside(source, inside, opening, found)
        at, line_starts = end.end(), end[0].endswith("\n")
    _add_text(found, source[at:])
    return [*found, Token("end", "the end")]


def _before(text: str, opening: str, sign: str, line_starts: bool) -> str:
    """The text before a tag, without the white space that the tag takes."""
    if sign == "-":
        return text.rstrip()
    line = text.rfind("\n") + 1
    if sign != "+" and opening != "{{" and (line or line_starts) and text[line:].isspace():
        return text[:line]
    return text


def _add_text(found: list[Token], text: str) -> None:
    if text:
        found.append(Token("text", text))


def _read_inside(source: str, at: int, opening: str, found: list[Token]) -> re.Match[str]:
    """Add the tokens within a tag; -> its end."""
    open_brackets: list[str] = []
    while True:
        if not open_brackets and (end := _END[opening].match(source, at)):
            found.append(Token("}}" if opening == "{{" else "%}", end[0].strip()))
            return end
        match = _INSIDE.match(source, at)
        if match is None:
            what = source[at : at + 10] or "the end"
            raise JinjaError(f"found {what!r} within a tag")
        kind, value = str(match.lastgroup), match[0]
        if kind == "operator" and value in _PAIRS:
            open_brackets.append(_PAIRS[value])
        elif (
            kind == "operator"
            and value in _PAIRS.values()
            and (not open_brackets or open_brackets.pop() != value)
        ):
            raise JinjaError(f"a {value!r} that closes nothing")
        if kind == "string":
            value = _ESCAPE.sub(_unescaped, value[1:-1])
        if kind != "space":
            found.append(Token(kind, value))
        if len(found) > MOST_TOKENS:
            raise JinjaError(f"it has over {MOST_TOKENS:,} words and signs")
        at = match.end()


def _unescaped(match: re.Match[str]) -> str:
    if match["sign"]:
        return _SIGNS[match["sign"]]
    if match["octal"]:
        return chr(int(match["octal"], 8))
    code = match["x"] or match["u"] or match["U"]
    if code is None or int(code, 16) > 0x10FFFF:
        raise JinjaError(f"the escape {match[0]!r} in a string")
    return chr(int(code, 16))
