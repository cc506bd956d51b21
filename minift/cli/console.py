"""Output: results on stdout, progress on stderr, colour only on a terminal."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from minift.errors import escaped, one_line

if TYPE_CHECKING:
    from tqdm import tqdm

WIDTH = 100
WIDE_ENOUGH = 80  # columns from which a bar has room for more than the least
SECONDS_BETWEEN_LINES = 5.0  # seconds between plain progress lines
KEPT_CONTROLS = re.compile("(\n|\x1b\\[(?:0|1|30;42)m)")  # line ends, and what `paint` writes
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but not line ends and tabs
LABEL_WIDTH = 13  # columns of a line's first word and the space after it
COLOUR = re.compile("\x1b\\[[\\d;]*m")
WORDS = re.compile("\x1b\\[[\\d;]*m| +|[^ \x1b]+(?: %(?= |$|,))?")  # 1.8 % is one piece
COMMAND = re.compile("\x1b\\[[\\d;]*m| +|(?:'[^']*'|[^ \x1b'])+")  # what quotes hold stays whole
# Our own marks, for a terminal or a file that cannot show them.
REPLACEMENTS = {"▐": "[", "▌": "]", "·": "-", "⏎": "\\n", "…": "...", "—": "-", "–": "-", "█": "#",
         "’": "'", "‘": "'", "“": '"', "”": '"', "×": "x", "→": "->"}  # fmt: skip


class Console:
    """One command's output. `quiet` leaves the result; `as_json` prints it as one JSON object."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False):
        self.quiet, self.as_json = quiet, as_json
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str = "") -> None:
        """Print a line about what goes on; nothing with --quiet."""
        if not self.quiet:
            print(wrap_text(with_replacements(escape_controls(text)), columns()), flush=True)

    def result(self, text: str, data: Mapping[str, object], *, whole: bool = False) -> None:
        """Print the result. `whole`: for a program to read, so long lines are not wrapped."""
        if self.as_json:
            print(json.dumps(with_nulls(data), allow_nan=False), flush=True)
        else:
            print(
                escape_controls(text)
                if whole
                else wrap_text(with_replacements(escape_controls(text)), columns()),
                flush=True,
            )

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def mark_trained(self, text: str) -> str:
        """Mark text that is trained on: green on a terminal, between bars elsewhere."""
        return self.paint(text, "30;42") if self.colour else f"▐{text}▌"

    def bar(self, total: int, unit: str) -> ProgressBar:
        return ProgressBar(total, unit, hidden=self.quiet)


def replace_unencodable_text() -> None:
    """Let stdout and stderr take every character: what their encoding lacks is replaced."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="minift")


def replacement(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that cannot be encoded: by REPLACEMENTS, else as Python escapes them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    plain = (REPLACEMENTS.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost)
    return "".join(plain), error.end


codecs.register_error("minift", replacement)


def with_replacements(text: str) -> str:
    """The text as stdout can show it, so that its width can be measured."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "minift").decode(encoding)


def with_nulls(data: object) -> object:
    """Data for JSON, which has no infinity and no NaN: they become null."""
    if isinstance(data, Mapping):
        return {key: with_nulls(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [with_nulls(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def columns() -> int:
    """The width to print at: the terminal's, at most WIDTH; WIDTH if there is no terminal."""
    return max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def display_width(text: str) -> int:
    """Columns that a text takes on a terminal: two for a wide character, none for a colour code."""
    if text.isascii() and "\x1b" not in text:
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    combining = sum(unicodedata.combining(c) > 0 for c in text)
    return len(COLOUR.sub("", text)) + wide - combining


def wrap_text(text: str, width: int) -> str:
    """Lines of at most `width` columns: a longer one is broken at spaces, its rest indented.

    A path is never broken; a command goes on after a backslash, so that it can be copied.
    """
    return "\n".join(
        line if display_width(line) <= width else wrap_line(line, width)
        for line in text.split("\n")
    )


def wrap_line(line: str, width: int) -> str:
    indent = len(line) - len(line.lstrip(" "))
    if (
        indent < LABEL_WIDTH < len(line)
        and line[LABEL_WIDTH - 1] == " "
        and line[LABEL_WIDTH] != " "
    ):
        indent = LABEL_WIDTH
    is_command = indent == LABEL_WIDTH and line[LABEL_WIDTH:].startswith("minift ")
    indent, end = min(indent, width // 3), " \\" if is_command else ""
    lines, at, colour, space = [""], 0, "", ""
    for piece in (COMMAND if is_command else WORDS).findall(line):
        if COLOUR.fullmatch(piece):
            colour = "" if piece == "\x1b[0m" else piece
            lines[-1] += space + piece
            at, space = at + len(space), ""
        elif piece[0] == " ":
            space = piece
        else:
            for part in [piece] if is_command else split_word(piece, width - indent):
                size = display_width(part)
                if at + len(space) + size + len(end) > width and at > indent:
                    lines[-1] += ("\x1b[0m" if colour else "") + end
                    lines.append(" " * indent + colour)
                    at, space = indent, ""
                lines[-1] += space + part
                at, space = at + len(space) + size, ""
    return "\n".join(lines)


def split_word(word: str, width: int) -> list[str]:
    """A word that is longer than a line, in pieces; a path stays whole."""
    if display_width(word) <= width or "/" in word:
        return [word]
    found, size = [""], 0
    for character in word:
        size += display_width(character)
        if size > width:
            found.append("")
            size = display_width(character)
        found[-1] += character
    return found


def escape_controls(text: str) -> str:
    """Escape control characters: names come from files and must not send commands to a terminal."""
    return "".join(
        part if KEPT_CONTROLS.fullmatch(part) else escaped(part)
        for part in KEPT_CONTROLS.split(text)
    )


def join_names(words: Iterable[str]) -> str:
    """Names from a file, such as labels, joined and shortened to fit in one line."""
    return one_line(", ".join(words), 200)


def without_controls(text: str) -> str:
    """A model's text; on a terminal with its control characters escaped."""
    if not sys.stdout.isatty():
        return text
    return CONTROL.sub(lambda found: escaped(found[0]), text)


class ProgressBar:
    """A tqdm bar on a terminal; elsewhere a plain line every few seconds. Unit "B" is bytes.

    As wide as the terminal. Progress is worth no error: a terminal that is gone ends no work.
    """

    def __init__(self, total: int, unit: str, *, hidden: bool):
        self.total, self.unit, self.hidden, self.done = total, unit, hidden, 0
        self.bytes = unit == "B"
        self.begin = self.told = time.monotonic()
        self.width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
        self.bar: tqdm | None = None
        if not hidden and sys.stderr.isatty():
            from tqdm import tqdm

            wide = self.width >= WIDE_ENOUGH
            layout = (
                f"{' ' * 13 if wide else ''}{{bar:{20 if wide else 8}}} {{n_fmt}}/{{total_fmt}} "
                f"{{unit}}  {'{elapsed} ' if wide else ''}left {{remaining}}{{desc}}"
            )
            self.bar = tqdm(
                total=total, unit=unit, unit_scale=self.bytes, bar_format=layout, leave=False,
                ncols=self.width,
            )  # fmt: skip

    def advance(self, by: int, note: str = "") -> None:
        self.done += by
        if self.bar is not None:
            with suppress(OSError):
                self.bar.set_description_str(note, refresh=False)
                self.bar.update(by)
        elif not self.hidden:
            now = time.monotonic()
            if now - self.told >= SECONDS_BETWEEN_LINES or self.done >= self.total:
                left = (now - self.begin) / self.done * (self.total - self.done)
                count = f"{self.done}/{self.total} {self.unit}"
                if self.bytes:
                    count = f"{megabytes(self.done)} of {megabytes(self.total)}"
                indent = " " * 13 if self.width >= WIDE_ENOUGH else ""
                line = f"{indent}{count}  left {clock(left)}  {note}"
                self.print_above(line[: self.width].rstrip())
                self.told = now

    def print_above(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        with suppress(OSError):
            if self.hidden:
                return
            if self.bar is not None:
                self.bar.write(line, file=sys.stderr)
            else:
                print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            with suppress(OSError):
                self.bar.close()


def clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60:02d}:{whole % 60:02d}"


def megabytes(count: float) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count < 1e7 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"
