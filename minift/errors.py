"""The errors that bad input can raise, and the notice of what was left out.

Each prints as one line that says what, where, what was found and what is allowed. The command line
turns errors into `minift: ...` and exit code 2; anything else that escapes is a bug. A notice is a
Python warning: the work goes on, and the command line prints its line.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence

SHOWN = 200  # problems in one message; a hostile file has as many as it likes


class FormatError(ValueError):
    """A file is not what its format allows. `PATH: WHERE: found X, allowed Y`.

    `code` is one of: truncated too-large bad-magic bad-version bad-utf8 bad-json dup-key
    missing-field unknown-field bad-type out-of-range overflow overlap hole trailing bad-dtype
    shape-mismatch unsafe bad-checksum bad-path limit.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        where: str,
        found: object,
        allowed: str,
        code: str,
        problems: Sequence[str] = (),  # the whole list, one indented line each
    ):
        self.path, self.where, self.code = str(path), where, code
        self.detail = f"found {one_line(found)}, allowed {one_line(allowed, 500)}"
        head = f"{one_line(self.path, 200)}: {one_line(where, 200)}: {self.detail}"
        lines = [one_line(problem, 200) for problem in problems[:SHOWN]]
        if len(problems) > SHOWN:
            lines.append(f"and {len(problems) - SHOWN:,} more")
        super().__init__("\n  ".join([head, *lines]))


class ConfigError(ValueError):
    """An option or a configuration field is wrong: one line, or more with two spaces before each.

    What stands in it may come from a file: a line end without the two spaces is escaped, as control
    characters are, and a line has an end.
    """

    def __init__(self, text: str):
        super().__init__("\n  ".join(one_line(line, 1000) for line in text.split("\n  ")))


class EncodeError(ConfigError):
    """A text or an id that a vocabulary cannot express; data readers add the file and line."""


class DataError(ValueError):
    """A data set is wrong: `FILE line N, field "F": found X, allowed Y`; not all have a line."""

    def __init__(
        self,
        file: str | os.PathLike[str],
        line: int | None,
        field: str | None,
        found: object,
        allowed: str,
    ):
        self.file, self.line, self.field = str(file), line, field
        where = one_line(self.file, 200)
        where += f" line {line:,}" if line is not None else ""
        where += f', field "{one_line(field)}"' if field is not None else ""
        super().__init__(f"{where}: found {one_line(found)}, allowed {one_line(allowed, 500)}")


class StorageError(OSError):
    """A file could not be written: disk full, no permission, ... `PATH: WHAT`, one line.

    `errno` is the system's reason, or None.
    """

    def __init__(self, path: str | os.PathLike[str], what: str, errno: int | None = None):
        self.path = os.fspath(path)
        super().__init__(f"{one_line(self.path, 200)}: {one_line(what, 500)}")
        self.errno = errno


class Notice(UserWarning):
    """A file was read, and something in it was ignored or decided: `PATH: WHAT`, one line."""


def notice(path: str | os.PathLike[str], what: str) -> None:
    """Say that a file was read otherwise than it asks for."""
    text = f"{one_line(os.fspath(path), 200)}: {one_line(what, 300)}"
    warnings.warn(text, Notice, stacklevel=2)


def one_line(value: object, width: int = 80) -> str:
    """`value` as printable text of at most `width` characters, control characters escaped."""
    text = escaped((value if isinstance(value, str) else repr(value))[: width + 1])
    return text if len(text) <= width else text[: width - 1] + "…"


def escaped(text: str) -> str:
    """`text` with line ends, control and invisible characters as Python spells them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
