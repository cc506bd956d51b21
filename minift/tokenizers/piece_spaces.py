"""How a tokenizer.json of pieces puts a space first, and what else its normalizer does.

    normalizer      Prepend ▁, Replace " " by ▁     Llama 2: a space before every text
    pre_tokenizer   Metaspace, prepend_scheme       the same, before texts or every part of one

These forms are known, beside Unicode's normal forms and the replacement of short texts; others are
refused. Where tokenizer_config.json names a class that transformers 5 makes anew, its rule counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from minift.errors import FormatError, notice
from minift.tokenizers.piece_model import SPACE
from minift.tokenizers.piece_settings import scheme_of
from minift.tokenizers.tokenizer_json import refuse_unknown
from minift.tokenizers.vocabulary import field_of, one_of

PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPENDED = {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}
METASPACE: dict[str, object] = {"type": "Metaspace", "replacement": SPACE, "split": False}
SPLIT: dict[str, object] = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
}
SPLIT |= {"invert": False}  # of no effect, as no space is left by then
LONGEST_STEP = 64  # characters that a Replace finds or puts; published ones have one or two
MOST_STEPS = 8
MOST_GROWTH = 1_000  # characters that all steps together make of one
GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18}  # of Unicode's normal forms
KNOWN = "null, Prepend of ▁, Replace of a text, NFC, NFD, NFKC, NFKD, or a Sequence of them"


@dataclass(frozen=True)
class FirstSpace:
    """How a file puts a space before a text, and a ▁ for every other."""

    normalizer: object
    pre_tokenizer: object
    prefix: bool = False
    legacy: bool = True  # before what follows a special token, too
    once: bool = False  # not before a space
    split: bool = False
    steps: tuple[tuple[str, ...], ...] = ()

    @property
    def behaviour(self) -> object:
        steps = tuple(step for step in self.steps if step != (" ", SPACE))
        return self.prefix, self.prefix and (self.legacy, self.once), self.split, steps


def first_space(data: Mapping[str, Any], config: Mapping[str, Any], path: str) -> FirstSpace:
    """What a tokenizer.json says of the space before a text and its parts, or its class."""
    normalizer, cut = data.get("normalizer"), data.get("pre_tokenizer")
    prepends, steps = _steps(normalizer, path)
    if type(cut) is dict and cut.get("type") == "Sequence":
        inner = field_of(cut, "pretokenizers", list, path, at="pre_tokenizer.")
        cut = inner[0] if len(inner) == 1 else cut
    if type(cut) is dict and cut.get("type") == "Metaspace" and not prepends:
        scheme, split = _metaspace(cut, path)
        legacy, prefix = scheme != "first", scheme != "never"
        found = FirstSpace(normalizer, cut, prefix, legacy, True, split, steps)
    elif (cut is None or cut == SPLIT) and (" ", SPACE) in steps:
        found = FirstSpace(normalizer, cut, prepends, steps=steps)
    else:
        allowed = "Metaspace, or null where the normalizer replaces a space by ▁"
        raise FormatError(path, "pre_tokenizer", cut, allowed, "unsafe")
    named = scheme_of(config, path)
    if named is None:
        return found
    legacy, prefix = named != "first", named != "never"
    told = FirstSpace(None, METASPACE | {"prepend_scheme": named}, prefix, legacy, True)
    if told.behaviour == found.behaviour:
        return found
    name = config["tokenizer_class"]
    does = {"first": "before a text", "always": "before each part of a text", "never": "nowhere"}
    text = f"the class {name} puts the first space {does[named]}, as in transformers 5"
    notice(path, f"{text}; what this file says of that is not used")
    return told


def _steps(normalizer: object, path: str) -> tuple[bool, tuple[tuple[str, ...], ...]]:
    """Whether a ▁ is put first, and what else the normalizer does."""
    rows = [normalizer] if normalizer is not None else []
    if type(normalizer) is dict and normalizer.get("type") == "Sequence":
        rows = field_of(normalizer, "normalizers", list, path, at="normalizer.")
    if len(rows) > MOST_STEPS:
        raise FormatError(path, "normalizer", len(rows), f"at most {MOST_STEPS} steps", "limit")
    steps: list[tuple[str, ...]] = []
    for row in rows:
        match row:
            case {"type": "Prepend", "prepend": str(text)} if text == SPACE and not steps:
                steps.append(())
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if (
                old and max(len(old), len(new)) <= LONGEST_STEP
            ):
                steps.append((old, new))
            case {"type": "NFC" | "NFD" | "NFKC" | "NFKD" as form}:
                steps.append((form,))
            case _:
                raise FormatError(path, "normalizer", row, KNOWN, "unsafe")
    growth = 1
    for step in steps:
        match step:
            case (form,):
                growth *= GROWTH[form]
            case (old, new):
                growth *= max(1, -(-len(new) // len(old)))
    if growth > MOST_GROWTH:
        found, allowed = f"{growth:,} characters made of one", f"at most {MOST_GROWTH:,}"
        raise FormatError(path, "normalizer", found, allowed, "limit")
    return () in steps, tuple(step for step in steps if step)


def _metaspace(cut: Mapping[str, Any], path: str) -> tuple[str, bool]:
    """When a Metaspace puts a space first, and whether every ▁ begins a word."""
    at = "pre_tokenizer."
    known = ("type", "replacement", "str_rep", "add_prefix_space", "prepend_scheme", "split")
    refuse_unknown(cut, known, path, at)
    for key in ("replacement", "str_rep"):
        one_of(cut.get(key, SPACE), {SPACE: None}, path, at + key)
    spaced = field_of(cut, "add_prefix_space", bool, path, at=at, none=True)
    usual = "never" if spaced is False else "always"
    schemes = {"always": "always", "first": "first", "never": "never"}
    scheme = one_of(cut.get("prepend_scheme", usual), schemes, path, at + "prepend_scheme")
    return scheme, field_of(cut, "split", bool, path, at=at, none=True) is not False
