"""What a person sees: results on stdout, progress on stderr, colour only on a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
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


class Screen:
    """One command's output. `quiet` leaves the result; `as_json` prints it as one JSON object."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False):
        self.quiet, self.as_json = quiet, as_json
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def say(self, text: str = "") -> None:
        """A line for the person who watches."""
        if not self.quiet:
            print(safe(text), flush=True)

    def result(self, text: str, data: Mapping[str, object]) -> None:
        """What the command was called for."""
        print(json.dumps(data) if self.as_json else safe(text), flush=True)

    def paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def learned(self, text: str) -> str:
        """Mark text that is trained on."""
        return self.paint(text, "30;42") if self.colour else f"▐{text}▌"

    def bar(self, total: int, unit: str) -> Bar:
        return Bar(total, unit, hidden=self.quiet)


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
