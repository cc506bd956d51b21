"""`minift explain`: the methods, in a table; or one of them, as its own file explains it.

A method's facts stand where its code is: the first lines of the module are what the table shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from minift.checkpoints.open import headers
from minift.cli.method import known, refuse_others
from minift.cli.options import Parsed
from minift.cli.screen import Screen
from minift.errors import ConfigError
from minift.model.on_meta import on_meta
from minift.peft.methods import METHODS, count

COLUMNS = "{:<11} {:<20} {:>11}  {:<6}  {:>6}  {:<14} {}"
NO_MERGE = "cannot be merged"


def explain(parsed: Parsed, screen: Screen) -> int:
    words = [known(parsed.words[0], "explain")] if parsed.words else list(METHODS)
    refuse_others(parsed, words)
    counts = trainable_counts(parsed, {word: parsed.config(METHODS[word][0]) for word in words})
    facts = {word: facts_of(METHODS[word][1]) for word in words}
    data = {word: vars(facts[word]) | counts.get(word, {}) for word in words}
    if parsed.words:
        module = METHODS[words[0]][1]
        text = (
            f"{(module.__doc__ or '').strip()}\n\n{last_lines(words[0], facts[words[0]], counts)}"
        )
        screen.result(text, data[words[0]])
        return 0
    head = ("method", "touches", "trainable", "merges", "rate", "file", "paper")
    lines = [COLUMNS.format(*head).rstrip()]
    for word in words:
        fact, number = facts[word], counts.get(word, {}).get("trainable")
        shown = "" if number is None else f"{number:,}"
        merges = "yes" if fact.merges else "no"
        row = (word, fact.touches, shown, merges, f"{fact.rate:g}", fact.file, fact.paper)
        lines += ["", COLUMNS.format(*row).rstrip(), f"{'':<11} {fact.equation}"]
    lines += ["", "minift explain METHOD has the rest; --model adds the trainable numbers"]
    screen.result("\n".join(lines), data)
    return 0


def trainable_counts(parsed: Parsed, configs: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """How many numbers each config trains on --model, from its headers: no weight is loaded."""
    name = parsed.flag("model")
    if name is None:
        return {}
    config = headers(name).config
    model = on_meta(config)
    total = sum(p.numel() for p in model.parameters())
    counted = {word: count(model, config) for word, config in configs.items()}
    return {word: {"trainable": n, "parameters": total} for word, n in counted.items()}


def last_lines(word: str, fact: Facts, counts: dict[str, dict[str, int]]) -> str:
    lines = [f"rate         {fact.rate:g}, where --lr is not given"]
    lines.append(f"file         adapter_config.json of {fact.file}")
    if word in counts:
        number, total = counts[word]["trainable"], counts[word]["parameters"]
        share = f"{100 * number / total:.2f} % of {total:,}"
        lines.append(f"trainable    {number:,}, {share}")
    lines.append(f"options      minift sft --help-all lists them under {word}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Facts:
    """What the table shows of a method."""

    equation: str
    touches: str
    merges: bool
    rate: float
    file: str  # PEFT's word for it
    paper: str


def facts_of(module: ModuleType) -> Facts:
    text = module.__doc__
    if text is None:
        raise ConfigError("explain: this python runs without docstrings (-OO), which hold the text")
    equation = re.search(r"^    (\S.*)$", text, re.MULTILINE)
    touches = re.search(r"^Touches: (.*?)(?:[.;]|, (?:or|of|in) )", text, re.MULTILINE)
    paper = re.search(r"arXiv:\d+\.\d+", text)
    assert equation is not None, f"{module.__name__}: no equation in its first lines"
    assert touches is not None, f"{module.__name__}: no line Touches:"
    assert paper is not None, f"{module.__name__}: no paper"
    return Facts(
        equation=re.sub(" {3,}", "   ", equation[1]),
        touches=" ".join(touches[1].split()),
        merges=NO_MERGE not in text,
        rate=module.RATE,
        file=module.FILE.peft_type if hasattr(module, "FILE") else "AdapterHub",
        paper=paper[0],
    )
