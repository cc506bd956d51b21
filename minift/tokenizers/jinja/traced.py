"""Text that knows where each of its characters comes from: a chat template, or a message.

    "<|im_start|>" + "user" + "\\n" + "Hello" -> runs (12, 0) (4, 0) (1, 0) (5, 1)

A chat template cuts, trims, splits and joins; done here, each character keeps the number of its
message (0 = the template's own). So what a user wrote is told apart from what the template wrote,
whatever the template does, and a special token's name becomes the token only where the template
wrote it. What has lost its source counts as UNKNOWN: plain text, like a message's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

TEMPLATE, UNKNOWN = 0, -1
Runs = tuple[tuple[int, int], ...]  # (number of characters, source)


class Text(str):
    """A string with the sources of its characters. An operation not below gives a plain `str`."""

    runs: Runs


def traced(text: str, source: int) -> Text:
    """All of `text` from one source."""
    return _text(text, ((len(text), source),) if text else ())


def runs_of(text: str) -> Runs:
    if isinstance(text, Text):
        return text.runs
    return ((len(text), UNKNOWN),) if text else ()


def _text(text: str, runs: Runs) -> Text:
    made = Text(text)
    made.runs = runs
    return made


def join(parts: Iterable[str], between: str = "") -> Text:
    """The parts in one text, as `str.join` has it."""
    rows = list(parts)
    runs: list[tuple[int, int]] = []
    for k, part in enumerate(rows):
        for row in (between, part) if k else (part,):
            for count, source in runs_of(row):
                if runs and runs[-1][1] == source:
                    runs[-1] = (runs[-1][0] + count, source)
                else:
                    runs.append((count, source))
    return _text(str.join(between, rows), tuple(runs))


def cut(text: str, start: int, stop: int) -> Text:
    """text[start:stop], for 0 <= start <= stop <= len(text)."""
    return cuts(text, [(start, stop)])[0]


def cuts(text: str, spans: Sequence[tuple[int, int]]) -> list[Text]:
    """text[start:stop] of each span; no span starts before the end of the one before."""
    found, runs = [], iter(runs_of(text))
    at, (count, source) = 0, next(runs, (0, TEMPLATE))
    for start, stop in spans:
        inside: list[tuple[int, int]] = []
        while True:
            if (here := min(at + count, stop) - max(at, start)) > 0:
                inside.append((here, source))
            if at + count >= stop:
                break
            at, (count, source) = at + count, next(runs)
        found.append(_text(str.__getitem__(text, slice(start, stop)), tuple(inside)))
    return found


def sources(text: str) -> Iterator[int]:
    """The source of each character."""
    for count, source in runs_of(text):
        yield from [source] * count


def pick(text: str, places: slice) -> Text:
    """text[places], whatever the step."""
    start, stop, step = places.indices(len(text))
    if step == 1:
        return cut(text, start, max(start, stop))
    known = list(sources(text))[places]
    return _text(str.__getitem__(text, places), tuple((1, source) for source in known))


def like(new: str, text: str) -> Text:
    """`new`, made of `text` character by character; else of the last message in it."""
    if len(new) == len(text):
        return _text(new, runs_of(text))
    return derived(new, text)


def derived(new: str, *made_of: str) -> Text:
    """`new`, no part of which is told apart: the template's only if all it was made of was."""
    found = {source for text in made_of for _, source in runs_of(text)}
    return traced(new, max(found - {TEMPLATE}, default=TEMPLATE))


def strip(text: str, characters: str | None = None, sides: str = "both") -> Text:
    start, stop = 0, len(text)
    if sides != "right":
        start = stop - len(str.lstrip(text, characters))
    if sides != "left":
        stop = max(start, len(str.rstrip(text, characters)))
    return cut(text, start, stop)


def split(text: str, by: str | None = None, most: int = -1, *, right: bool = False) -> list[Text]:
    """The parts of `str.split`, or of `str.rsplit`."""
    spans, at = [], 0
    for part in str.rsplit(text, by, most) if right else str.split(text, by, most):
        at = str.index(text, part, at)  # white space may be skipped, and nothing else
        spans.append((at, at + len(part)))
        at += len(part) + len(by or "")
    return cuts(text, spans)


def lines(text: str, ends: bool = False) -> list[Text]:
    """The lines of `str.splitlines`."""
    spans, at = [], 0
    for whole, line in zip(str.splitlines(text, True), str.splitlines(text, ends), strict=True):
        spans.append((at, at + len(line)))
        at += len(whole)
    return cuts(text, spans)


def replace(text: str, old: str, new: str, most: int = -1) -> Text:
    """As `str.replace`, of an `old` that is not empty."""
    return join(split(text, old, most), new)


_WORD_STARTS = re.compile(r"([-\s({\[<]+)")


def title(text: str) -> Text:
    """A capital at the start of each word, as Jinja's filter sets them."""
    words: Sequence[str] = _WORD_STARTS.split(text)
    return like("".join(word[:1].upper() + word[1:].lower() for word in words), text)
