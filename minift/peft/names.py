"""The names in a method's config: one text or several become a tuple; many are shown in short."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from minift.errors import ConfigError, one_line

LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
BLOCK = re.compile(r"(?:.*\.)?\d+\.(?:.*\.)?(\w+)")  # a path through a block: its end


def as_tuples(
    config: Any, *, names: Sequence[str] = (), ids: Sequence[str] = (), pairs: Sequence[str] = ()
) -> None:
    """Make these fields of a frozen config tuples, whatever shape they were given in.

    `names`: "q", "q,v" as on the command line, or a sequence of texts; `ids`: a whole number or a
    sequence of them; `pairs`: a mapping, or (name, number) pairs. ConfigError for anything else.
    """
    for field in (*names, *ids, *pairs):
        value = getattr(config, field)
        if field in names and isinstance(value, str):
            found: Any = [word.strip() for word in value.split(",") if word.strip()]
        elif field in ids and type(value) is int:
            found = [value]
        elif field in pairs and isinstance(value, Mapping):
            found = value.items()
        else:
            found = value
        kind = "name" if field in names else "id" if field in ids else "pair"
        if isinstance(found, str | bytes) or not isinstance(found, Iterable):
            raise ConfigError(f"{field}: found {one_line(value)}, allowed {ALLOWED[kind]}")
        items = tuple(tuple(one) if type(one) is list else one for one in found)
        if not all(RULES[kind](one) for one in items):
            raise ConfigError(f"{field}: found {one_line(value)}, allowed {ALLOWED[kind]}")
        object.__setattr__(config, field, items)


ALLOWED = {
    "name": 'a text ("q", or "q,v") or several texts',
    "id": "a whole number or several",
    "pair": 'a mapping of names to numbers, as {"down": 16}',
}
RULES = {
    "name": lambda one: type(one) is str,
    "id": lambda one: type(one) is int,
    "pair": lambda one: (
        type(one) is tuple
        and len(one) == 2
        and type(one[0]) is str
        and isinstance(one[1], int | float)
    ),
}


def summarize_targets(targets: Sequence[str]) -> str:
    """Targets for one line: paths by their last names; 210 paths are "all linears in 30 blocks"."""
    found = [BLOCK.fullmatch(target) for target in targets]
    counts = Counter(match[1] for match in found if match is not None)
    other = [target for target, match in zip(targets, found, strict=True) if match is None]
    if {target.removesuffix("_proj") for target in other} == {*LINEARS}:
        other = ["all linears"]
    parts = list(other)
    for number in sorted(set(counts.values()), reverse=True):
        leaves = [leaf for leaf, count in counts.items() if count == number]
        leaves.sort(key=lambda leaf: (*LINEARS, leaf).index(leaf))
        every = {leaf.removesuffix("_proj") for leaf in leaves} == {*LINEARS}
        linears = "all linears" if every else ",".join(leaves)
        parts.append(f"{linears} in {number} block{'s' if number > 1 else ''}")
    return ",".join(other) if not counts else ", ".join(parts)
