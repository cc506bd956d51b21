"""What a method says of itself in a few words: the row and the page of `minift explain`.

Its derivation stands in the docstring of its file.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class About:
    """The facts by which one chooses a method."""

    equation: str
    paper: str
    changes: str  # the part of the model
    formula: str  # how many it trains, in closed form
    merges: bool  # whether the adapted model can become a plain one
    merging: str  # how; or why not
    use: str  # when to choose it
