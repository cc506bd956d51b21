"""The targets of an adapter in a few words: files and configs may list each by its path.

blocks.0.attn.q, blocks.1.attn.q, ...        q of 30 layers
every linear of 30 layers                    all linears of 30 layers
"""

from __future__ import annotations

import re
from collections.abc import Sequence

PATH = re.compile(r"(?:.*\.)?(?:blocks|layers|layer|h)\.(\d+)\.(.+)")
LINEARS = {"q", "k", "v", "o", "gate", "up", "down"}
THEIRS = re.compile(r"(q|k|v|o|gate|up|down)_proj")  # the families' names of the same
SHOWN = 8  # names in one line


def in_short(targets: Sequence[str]) -> str:
    """Names as they are; paths by their last name and their number of layers."""
    if tuple(targets) == ("all",):
        return "all linears"
    places: dict[str, set[str]] = {}  # the layers of a name; none of a name that is no path
    for target in targets:
        found = PATH.fullmatch(target)
        name = target if found is None else found[2].rpartition(".")[2]
        places.setdefault(name, set()).update([] if found is None else [found[1]])
    counts: dict[int, list[str]] = {}
    for name, layers in places.items():
        counts.setdefault(len(layers), []).append(name)
    parts = []
    for count, names in counts.items():
        plain = {THEIRS.sub(r"\1", name) for name in names}
        shown = names[:SHOWN] + [f"{len(names) - SHOWN} more"] * (len(names) > SHOWN)
        text = "all linears" if plain >= LINEARS and len(names) == 7 else ", ".join(shown)
        parts.append(text + (f" of {count} layer{'s' * (count > 1)}" if count else ""))
    return " and ".join(parts)
