"""What a person sees: results on stdout, progress on stderr, colour only on a terminal."""

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
WIDE = 80  # columns from which a bar has room for more than the least
EVERY = 5.0  # seconds between plain progress lines
OURS = re.compile("(\n|\x1b\\[(?:0|1|30;42)m)")  # line ends, and what `paint` writes
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but not line ends and tabs
LABEL = 13  # columns of a line's first word and the space after it
COLOUR = re.compile("\x1b\\[[\\d;]*m")
PIECES = re.compile("\x1b\\[[\\d;]*m| +|[^ \x1b]+(?: %(?= |$|,))?")  # 1.8 % is one piece
COMMAND = re.compile("\x1b\\[[\\d;]*m| +|(?:'[^']*'|[^ \x1b'])+")  # what quotes hold stays whole
# Our own marks, for a terminal or a file that cannot show them.
PLAIN = {"▐": "[", "▌": "]", "·": "-", "⏎": "\\n", "…": "...", "—": "-", "–": "-", "█": "#",
         "’": "'", "‘": "'", "“": '"', "”": '"', "×": "x", "→": "->"}  # fmt: skip


class Console:
    """One command's output. `quiet` leaves the result; `as_json` prints it as one JSON object."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False):
        self.quiet, self.as_json = quiet, as_json
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str = "") -> None:
        """A line for the person who watches."""
        if not self.quiet:
            print(fitted(encodable(safe(text)), columns()), flush=True)

    def result(self, text: str, data: Mapping[str, object], *, whole: bool = False) -> None:
        """What the command was called for. `whole`: lines for a program, which are not broken."""
        if self.as_json:
            print(json.dumps(finite(data), allow_nan=False), flush=True)
        else:
            print(safe(text) if whole else fitted(encodable(safe(text)), columns()), flush=True)

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def learned(self, text: str) -> str:
        """Mark text that is trained on."""
        return self.paint(text, "30;42") if self.colour else f"▐{text}▌"

    def bar(self, total: int, unit: str) -> Bar:
        return Bar(total, unit, hidden=self.quiet)


def show_any_text() -> None:
    """Let stdout and stderr take every character: what their encoding lacks is written plainly."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="minift")


def plainly(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that cannot be encoded: PLAIN, or as Python escapes them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    plain = (PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lost)
    return "".join(plain), error.end


codecs.register_error("minift", plainly)


def encodable(text: str) -> str:
    """The text with the characters that stdout will show, so that its width is what it says."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "minift").decode(encoding)


def finite(data: object) -> object:
    """The same for JSON, which has no word for a number that is not finite: null."""
    if isinstance(data, Mapping):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def columns() -> int:
    """The width to write for: the terminal's, at most WIDTH; WIDTH where there is none."""
    return max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


def width_of(text: str) -> int:
    """Columns that a terminal needs for a text: two for a wide character, none for a colour."""
    if text.isascii() and "\x1b" not in text:
        return len(text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    combining = sum(unicodedata.combining(c) > 0 for c in text)
    return len(COLOUR.sub("", text)) + wide - combining


def fitted(text: str, width: int) -> str:
    """Lines of at most `width` columns: a longer one is broken at spaces, its rest indented.

    A path is never broken; a command goes on after a backslash, so that it can be copied.
    """
    return "\n".join(
        line if width_of(line) <= width else broken(line, width) for line in text.split("\n")
    )


def broken(line: str, width: int) -> str:
    indent = len(line) - len(line.lstrip(" "))
    if indent < LABEL < len(line) and line[LABEL - 1] == " " and line[LABEL] != " ":
        indent = LABEL
    is_command = indent == LABEL and line[LABEL:].startswith("minift ")
    indent, end = min(indent, width // 3), " \\" if is_command else ""
    lines, at, colour, space = [""], 0, "", ""
    for piece in (COMMAND if is_command else PIECES).findall(line):
        if COLOUR.fullmatch(piece):
            colour = "" if piece == "\x1b[0m" else piece
            lines[-1] += space + piece
            at, space = at + len(space), ""
        elif piece[0] == " ":
            space = piece
        else:
            for part in [piece] if is_command else parts(piece, width - indent):
                size = width_of(part)
                if at + len(space) + size + len(end) > width and at > indent:
                    lines[-1] += ("\x1b[0m" if colour else "") + end
                    lines.append(" " * indent + colour)
                    at, space = indent, ""
                lines[-1] += space + part
                at, space = at + len(space) + size, ""
    return "\n".join(lines)


def parts(word: str, width: int) -> list[str]:
    """A word that is longer than a line, in pieces; a path stays whole."""
    if width_of(word) <= width or "/" in word:
        return [word]
    found, size = [""], 0
    for character in word:
        size += width_of(character)
        if size > width:
            found.append("")
            size = width_of(character)
        found[-1] += character
    return found


def safe(text: str) -> str:
    """Lines for a terminal: names in them come from files, and must not steer it."""
    return "".join(part if OURS.fullmatch(part) else escaped(part) for part in OURS.split(text))


def names(words: Iterable[str]) -> str:
    """Names from a file, such as labels, as part of one line."""
    return one_line(", ".join(words), 200)


def spoken(text: str) -> str:
    """What a model says, for a terminal: no character of it is a command to the terminal."""
    if not sys.stdout.isatty():
        return text
    return CONTROL.sub(lambda found: escaped(found[0]), text)


class Bar:
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

            wide = self.width >= WIDE
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
            if now - self.told >= EVERY or self.done >= self.total:
                left = (now - self.begin) / self.done * (self.total - self.done)
                count = f"{self.done}/{self.total} {self.unit}"
                if self.bytes:
                    count = f"{megabytes(self.done)} of {megabytes(self.total)}"
                indent = " " * 13 if self.width >= WIDE else ""
                line = f"{indent}{count}  left {clock(left)}  {note}"
                self.tell(line[: self.width].rstrip())
                self.told = now

    def tell(self, line: str) -> None:
        """A line that stays, above the bar."""
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
