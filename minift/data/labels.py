"""Labels: which of the names a value of a data file, or of a list of rows, means.

The name comes first. An index (0, 1, ...) is read only where no name is itself a number: of the
stars 1 to 5, a 0 is no star. Tables write 1 as 1.0 where a cell of the column is empty, so that a
whole number with a zero behind the point is the number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from minift.errors import ConfigError

_is_number = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)").fullmatch
_is_whole = re.compile(r"([0-9]{1,8})(\.0+)?").fullmatch
_is_index = re.compile(r"[0-9]{1,8}").fullmatch


def checked_labels(labels: Sequence[str]) -> tuple[str, ...]:
    if isinstance(labels, str) or not all(type(word) is str and word.strip() for word in labels):
        raise ConfigError(f"labels are {labels!r}; allowed: a list of words")
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ConfigError(f"labels are {', '.join(labels)}; allowed: two or more different words")
    return tuple(labels)


def label_index(text: str, labels: tuple[str, ...]) -> int | None:
    """The index of the label that a text means, or None.

    >>> label_index("5", ("1", "5")), label_index("1", ("bad", "good")), label_index("0", ("1",))
    (1, 1, None)
    """
    for value in (text, text.strip()):
        if value in labels:
            return labels.index(value)
    value = whole(text.strip())
    names = [whole(label.strip()) for label in labels]
    if value in names:
        return names.index(value)
    is_index = _is_index(value) and not any(map(_is_number, names)) and int(value) < len(labels)
    return int(value) if is_index else None


def whole(text: str) -> str:
    """ "1.0" as "1"; other texts as they are."""
    match = _is_whole(text)
    return match[1] if match else text


def allowed_labels(labels: tuple[str, ...]) -> str:
    """What an error says is allowed."""
    by_number = any(_is_number(label.strip()) for label in labels)
    return ", ".join(labels) + ("" if by_number else f" or 0 to {len(labels) - 1}")
