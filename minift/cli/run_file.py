"""What a run's run.json says that later commands go by: the kind of base, how texts were made.

Anyone can write such a file, so each field that is used is checked; the others do not matter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minift.checkpoints import strict_json
from minift.checkpoints.frozen_base import BASES
from minift.checkpoints.open import DTYPES
from minift.errors import FormatError, one_line

NAME = "run.json"
TEXTS = ("template", "target", "pair")  # of a classifier's data
SHORTEST = 3  # tokens of a text


def base_in(adapter: Path) -> str | None:
    """How the run of an adapter stored the frozen linears; None where no run says so."""
    run = adapter.parent / NAME
    if adapter.name != "adapter" or not os.path.exists(run):
        return None
    found = strict_json.read(run).get("base")
    if found is None or (type(found) is str and found in ("dense", *BASES)):
        return found
    allowed = f"dense, {', '.join(BASES)}"
    raise FormatError(run, "base", found, allowed, "out-of-range")


def dtype_in(adapter: Path) -> str | None:
    """The dtype that the run of an adapter computed in; None where no run says so."""
    run = adapter.parent / NAME
    if adapter.name != "adapter" or not os.path.exists(run):
        return None
    numerics = strict_json.read(run).get("numerics")
    found = numerics.get("dtype") if type(numerics) is dict else None
    if found is None or found in DTYPES:
        return found
    raise FormatError(run, "numerics.dtype", found, ", ".join(DTYPES), "out-of-range")


def data_in(adapter: Path) -> Mapping[str, Any]:
    """How the run of a classifier made its texts: TEXTS and max_length, as far as they are there.

    Nothing where there is no run.json, or one of another kind of run.
    """
    for folder in (adapter, adapter.parent):
        run = folder / NAME
        if os.path.exists(run):
            data = strict_json.read(run).get("data")
            if type(data) is not dict or data.get("objective") != "classification":
                return {}
            return checked(data, run)
    return {}


def checked(data: Mapping[str, Any], run: Path) -> dict[str, Any]:
    found = {key: data[key] for key in (*TEXTS, "max_length") if data.get(key) is not None}
    for key, value in found.items():
        if key in TEXTS and (type(value) is not str or not value):
            raise FormatError(run, f"data.{key}", value, "text", "bad-type")
        if key == "max_length" and (type(value) is not int or value < SHORTEST):
            allowed = f"a whole number from {SHORTEST} on"
            raise FormatError(run, f"data.{key}", value, allowed, "bad-type")
    return found


def ended_badly(adapter: Path) -> str | None:
    """That the run of an adapter did not come to its end, in words; None where it did."""
    run = adapter.parent / NAME
    if adapter.name != "adapter" or not os.path.exists(run):
        return None
    facts = strict_json.read(run)
    if facts.get("ended", "finished") in ("finished", "interrupted"):
        return None
    step = facts.get("kept_step")
    which = f", of step {step}," if type(step) is int else ""
    return f"the run did not finish; its best adapter so far{which} is used"


def facts_in(folder: Path) -> str | None:
    """A run's steps, last loss, end and kept step, in words; None where it has no run.json."""
    run = folder / NAME
    if not os.path.exists(run):
        return None
    facts = strict_json.read(run)
    text = f"{one_line(facts.get('steps'))} steps · loss {one_line(facts.get('final_loss'))}"
    ended, kept = facts.get("ended", "finished"), facts.get("kept_step")
    if ended != "finished":
        planned = one_line(facts.get("planned_steps"))
        text = f"{one_line(ended, 200)} · {planned} steps planned · {text}"
    if kept is not None and (ended != "finished" or kept != facts.get("steps")):
        text += f" · adapter of step {one_line(kept)}"
    return text
