"""What stands in place of a file that was never fetched whole, and what to do about it.

Git without LFS leaves three lines of text for each large file, a browser or a proxy an HTML page,
a full disk an empty file. Every reader of published files asks here before it reads one.
"""

from __future__ import annotations

import mmap
import os

from minift.errors import FormatError

POINTER = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html", b"<?xml")
AGAIN = "fetch it again, for example with minift download org/name"
CUT = f"(cut short: {AGAIN})"  # of a file that ends before what it announces


def check(
    path: str | os.PathLike[str], data: mmap.mmap | bytes, *, empty: str = "bad-magic"
) -> None:
    """Refuse what is no file of any format; `empty` is the code of an empty one, "" allows it."""
    start = data[:512].lstrip().lower()
    if data[: len(POINTER)] == POINTER:
        found = "a Git LFS pointer in place of the file"
        raise FormatError(
            path, "file", found, f"the file itself: git lfs pull, or {AGAIN}", "bad-magic"
        )
    if start.startswith(PAGES):
        found = "an HTML page in place of the file"
        raise FormatError(path, "file", found, f"the file itself: {AGAIN}", "bad-magic")
    if not len(data) and empty:
        raise FormatError(path, "file", "an empty file", f"the file itself: {AGAIN}", empty)
