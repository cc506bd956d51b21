"""Conversations of a ChatterBot corpus file: the part of YAML that those files use, and no more.

conversations:
- - What is a pun?                  a turn: plain, 'quoted', "quoted" or a block after |
  - A play on words, which          lines further to the right go on with it
    sounds like another.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from minift.data.rows import Problem
from minift.errors import DataError
from minift.storage import read_file

LIMIT = 16 << 20
BLANK = " \t"  # other spaces belong to the text
_item = re.compile(r"(- - |- |  - )(.*)").fullmatch
_begins_otherwise = re.compile(r"[\[\]{}&*!>%@`|?#,]|[-:] ").match


def conversations_of(path: str | os.PathLike[str]) -> Iterator[list[str]]:
    """The turns of each conversation of a file."""
    line = 1
    try:
        text = read_file(path, limit_bytes=LIMIT).decode()
        turns: list[str] = []
        for at, is_first, lines in _items(text.removeprefix("\ufeff")):
            line = at
            if is_first and turns:
                yield turns
                turns = []
            turns.append(_scalar(lines))
        if turns:
            yield turns
    except UnicodeDecodeError:
        raise DataError(path, None, None, "bytes that are no UTF-8", "UTF-8 text") from None
    except Problem as problem:
        raise problem.at(path, problem.line or line) from None


def _items(text: str) -> Iterator[tuple[int, bool, list[str]]]:
    """Each item under `conversations:`: (its line, is it a conversation's first, its lines)."""
    number, is_first, plain = 0, True, False
    lines: list[str] = []
    started = False
    for at, line in enumerate(text.splitlines(), 1):
        if not started:
            started = line.rstrip() == "conversations:"
            continue
        item = _item(line)
        # Two items deep under a plain `- text`, a dash is text: YAML folds it into the turn.
        if item and not (item[1] == "  - " and lines and is_first and plain):
            if lines:
                yield number, is_first, lines
            number, is_first, lines = at, item[1] != "  - ", [item[2]]
            plain = item[1] == "- "
        elif lines and (line.startswith("  ") or not line.strip()):
            lines.append(line)
        elif line.strip():
            problem = Problem(None, line, "- - text, or text further to the right")
            problem.line = at
            raise problem
    if lines:
        yield number, is_first, lines


def _scalar(lines: list[str]) -> str:
    first = lines[0].strip(BLANK)
    if first == "|":
        block = [line[4:] if line.startswith("    ") else line.strip() for line in lines[1:]]
        return "\n".join(block).rstrip("\n") + "\n"
    while not lines[-1].strip() and len(lines) > 1:
        lines = lines[:-1]
    if not all(line.strip() for line in lines):
        raise Problem(None, "a blank line inside a turn", "a block after |")
    folded = " ".join(line.strip(BLANK) for line in lines)
    for quote in "'\"":
        if first.startswith(quote):
            inner = folded[1:-1]
            if len(folded) < 2 or not folded.endswith(quote):
                raise Problem(None, folded, f"a closing {quote}")
            if quote == "'":
                if "'" in inner.replace("''", ""):
                    raise Problem(None, folded, "quotes inside '...' doubled")
                return inner.replace("''", "'")
            if '"' in inner or "\\" in inner:
                raise Problem(None, folded, 'no " or \\ inside "..."')
            return inner
    if _begins_otherwise(folded) or ": " in folded or " #" in folded:
        raise Problem(None, folded, "plain text, or text in quotes")
    return folded
