"""What the data alone decides, found before the first step, without tokenizing all of it.

A chat template is tried once for every order of roles; what it may look for in a text counts with
the order. A character that the vocabulary may refuse is tried once. A text has no more tokens than
bytes: only where that could be too many are tokens counted, of a sample if there are many such.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from unicodedata import normalize

from minift.data.read import Records
from minift.data.split import Rows
from minift.errors import ConfigError, EncodeError, notice
from minift.model.transformer import Transformer
from minift.peft.adapters import room_left
from minift.tokenizers import chat
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.tokens import Finder

Rowset = Records | Rows
Data = str | os.PathLike[str] | Sequence[Mapping[str, object]]  # a path, a name, rows of any kind
SAMPLE = 256  # long rows whose tokens are counted
ASCII = "".join(map(chr, range(128)))
LITERAL = re.compile(r"""'([^'\\\n]{3,40})'|"([^"\\\n]{3,40})\"""")  # in a template


def check_room(most: int, model: Transformer, by_default: bool) -> int:
    """The tokens of a row: `most`, or what the model has room for if nobody asked for more."""
    room = room_left(model)
    if most <= room:
        return most
    taken = model.config.context - room
    why = f"the model's context of {model.config.context:,}"
    if taken:
        why += f", less the {taken} that the adapter puts before a text"
    if not by_default or room < 2:
        raise ConfigError(f"max_length: found {most:,}, allowed at most {room:,}: {why}")
    return room


def say_capped(usual: int, most: int, cuts: Iterable[Cuts]) -> None:
    """One notice where rows are cut to less than is usual, since the model has no more room."""
    if usual != most and any(found.cut for found in cuts):
        notice(
            "max_length", f"{most:,} tokens in place of {usual:,}: the model has room for no more"
        )


# ---- rows ----------------------------------------------------------------------------------------


class Sides(Protocol):
    """An objective's rows: to train on, and held out, if there are any."""

    train: Rowset
    held_out: Rowset | tuple[()]


def side_of(objective: Sides, held_out: bool) -> Rowset:
    """The rows of one side, which has some."""
    rows = objective.held_out if held_out else objective.train
    assert not isinstance(rows, tuple)
    return rows


def row_facts(objective: Sides) -> dict[str, object]:
    """How many rows there are, and of which file, for run.json."""
    facts: dict[str, object] = {}
    for name, rows in (("train", objective.train), ("held_out", objective.held_out)):
        facts[f"{name}_rows"] = len(rows)
        if not isinstance(rows, tuple):
            facts[f"{name}_file"], facts[f"{name}_sha256"] = str(rows.path), rows.sha256
    return facts


def spelled(error: EncodeError) -> str:
    """What an error of a vocabulary found, for the error of a row."""
    return str(error).removeprefix("found ")


@dataclass
class Counted:
    """Rows of a kind, and the first of them."""

    count: int = 0
    first: int = 0

    def add(self, i: int) -> None:
        self.first = self.first if self.count else i
        self.count += 1

    def say(self, rows: Rowset, of: str, what: str) -> None:
        """One notice, if there are any."""
        if self.count:
            have, place = "has" if self.count == 1 else "have", rows.place(self.first)
            text = f"{self.count:,} of {len(rows):,} rows {have} {of} (first: {place}); {what}"
            notice(rows.path, text)


# ---- texts ---------------------------------------------------------------------------------------


class Vocabulary:
    """What a vocabulary makes of texts, without tokenizing them."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.tried: set[str] = set()
        self.refused: set[str] = set()
        self.silent: set[str] = set()  # characters that by themselves give no token
        self.try_all(ASCII)
        self.plain = not self.refused  # every ASCII text can be written
        special: dict[str, int] = getattr(tokenizer, "special", {})
        names = {name: i for name, i in special.items() if len(name) > 1}
        self.starts = {name[0] for name in names}
        self.names = Finder(names)

    def try_all(self, characters: Iterable[str]) -> None:
        for character in characters:
            try:
                if not self.tokenizer.encode(character):
                    self.silent.add(character)
            except EncodeError:
                self.refused.add(character)
        self.tried.update(characters)

    def may_refuse(self, text: str) -> bool:
        """Whether there is a character in it that cannot be written by itself."""
        if self.plain and text.isascii():
            return False
        found = set(text)
        if not text.isascii():
            found |= set(normalize("NFC", text))
        self.try_all(found - self.tried)
        return not found.isdisjoint(self.refused)

    def may_be_nothing(self, text: str) -> bool:
        """Whether all of it may vanish: each character alone gives no token."""
        self.try_all(set(text) - self.tried)
        return self.silent.issuperset(text)

    def spells_special(self, text: str) -> bool:
        """Whether the name of a special token stands in it, which is plain text there."""
        return any(c in text for c in self.starts) and len(self.names.cut(text)) > 1


def most_tokens(text: str) -> int:
    """More tokens than any vocabulary makes of a text: a byte each, and a space before it."""
    return 1 + (
        len(text) if text.isascii() else len(normalize("NFKC", text).encode(errors="replace"))
    )


def marks_of(tokenizer: Tokenizer) -> list[str]:
    """What a chat template may look for in a message: those of its literals that look like tags."""
    found = {one or two for one, two in LITERAL.findall(chat.source_of(tokenizer))}
    return sorted(text for text in found if not text.isalpha() and re.search(r"[<\[|{]", text))


def shape_of(messages: Sequence[Mapping[str, object]], marks: Sequence[str]) -> object:
    """All of a conversation that decides whether a template writes it."""
    return tuple(
        (m.get("role"), not m["content"], m.get("weight") == 0,
         tuple(mark for mark in marks if mark in m["content"]))  # type: ignore[operator]
        for m in messages
    )  # fmt: skip


# ---- lengths -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cuts:
    """How many rows lose text; `exact` where all that could were counted."""

    rows: int
    cut: int
    exact: bool = True

    @property
    def verb(self) -> str:
        return "is" if self.cut == 1 else "are"

    def __str__(self) -> str:
        about = "" if self.exact else "about "
        return f"{about}{self.cut:,} of {self.rows:,} rows"


def count_cuts(long: Sequence[int], rows: int, is_cut: Callable[[int], bool]) -> Cuts:
    """How many of the rows are cut, of which only `long` ones can be."""
    if len(long) <= SAMPLE:
        return Cuts(rows, sum(map(is_cut, long)))
    sample = [long[k * len(long) // SAMPLE] for k in range(SAMPLE)]
    return Cuts(rows, round(sum(map(is_cut, sample)) * len(long) / SAMPLE), exact=False)


def cut_facts(cuts: Mapping[bool, Cuts]) -> dict[str, object]:
    """The counts of cut rows, for run.json; `cuts` of the training data and of what is held out."""
    facts: dict[str, object] = {}
    for held_out, found in cuts.items():
        name = "held_out" if held_out else "train"
        if found.cut:
            facts[f"{name}_cut"], facts[f"{name}_cut_is_exact"] = found.cut, found.exact
    return facts
