"""`minift explain`: the methods in a table; or one of them, as its own file explains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from minift.checkpoints.open import headers
from minift.cli.console import Console
from minift.cli.method import check_method, refuse_other_options
from minift.cli.options import Parsed
from minift.interop.methods import FORMATS
from minift.model.on_meta import on_meta
from minift.peft.about import About
from minift.peft.methods import METHODS, count

COLUMNS = "{:<11} {:<20} {:>11}  {:<6}  {:>6}  {:<14} {}"


def explain(parsed: Parsed, console: Console) -> int:
    words = [check_method(parsed.words[0], "explain")] if parsed.words else list(METHODS)
    refuse_other_options(parsed, words)
    counts = trainable_counts(parsed, {word: parsed.config(METHODS[word][0]) for word in words})
    data = {word: facts(word) | counts.get(word, {}) for word in words}
    if parsed.words:
        console.result(page(words[0], counts), data[words[0]])
    else:
        console.result(table(counts), data)
    return 0


def table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Every method: a row, and its equation below it."""
    head = ("method", "changes", "trainable", "merges", "rate", "file", "paper")
    lines = [COLUMNS.format(*head).rstrip()]
    for word, (_, module) in METHODS.items():
        about: About = module.ABOUT
        number = counts.get(word, {}).get("trainable")
        shown, merges = "" if number is None else f"{number:,}", "yes" if about.merges else "no"
        rest = (f"{module.RATE:g}", file_of(word), about.paper)
        lines += ["", COLUMNS.format(word, about.changes, shown, merges, *rest).rstrip()]
        lines.append(f"{'':<11} {about.equation}")
    return "\n".join(
        (*lines, "", "minift explain METHOD has the rest; --model adds the trainable numbers")
    )


def page(word: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    """One method: the first lines of its file, and its facts."""
    module = METHODS[word][1]
    about: About = module.ABOUT
    # python -OO leaves docstrings out
    first = (module.__doc__ or f"{word}\n\n    {about.equation}\n\n{about.paper}").strip()
    lines = [
        f"changes      {about.changes}",
        f"parameters   {about.formula}",
        f"merges       {'yes' if about.merges else 'no'}: {about.merging}",
        f"when         {about.use}",
        f"rate         {module.RATE:g}, where --lr is not given",
        f"file         adapter_config.json of {file_of(word)}",
    ]
    if word in counts:
        number, total = counts[word]["trainable"], counts[word]["parameters"]
        lines.append(f"trainable    {number:,}, {100 * number / total:.2f} % of {total:,}")
    lines.append(f"options      minift sft --help-all lists them under {word}")
    return "\n".join((first, "", *lines))


def facts(word: str) -> dict[str, Any]:
    """What --json says of a method."""
    module = METHODS[word][1]
    return asdict(module.ABOUT) | {"rate": module.RATE, "file": file_of(word)}


def file_of(word: str) -> str:
    """The program that its adapter files are of, as they name it: PEFT's `peft_type`."""
    kind = METHODS[word][0]
    return FORMATS[kind].peft_type if kind in FORMATS else "AdapterHub"


def trainable_counts(parsed: Parsed, configs: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """How many parameters each config trains on --model, from its headers: no weight is loaded."""
    name = parsed.flag("model")
    if name is None:
        return {}
    config = headers(name).config
    model = on_meta(config)
    total = sum(p.numel() for p in model.parameters())
    counted = {word: count(model, config) for word, config in configs.items()}
    return {word: {"trainable": n, "parameters": total} for word, n in counted.items()}
