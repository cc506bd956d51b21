"""Fields of a run's run.json that later commands use: the kind of base, the dtype, its end.

Anyone can write such a file, so each field that is used is checked; the others do not matter.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from minift.checkpoints.frozen_base import BASES
from minift.checkpoints.open import DTYPES
from minift.errors import FormatError, one_line
from minift.formats import strict_json
from minift.formats.overwrite import ADAPTER_FOLDER, RUN


def read_run_of(adapter: Path) -> tuple[dict[str, Any], Path]:
    """run.json beside an adapter's folder, and its path; an empty dict if there is none."""
    run = adapter.parent / RUN
    there = adapter.name == ADAPTER_FOLDER and os.path.exists(run)
    return (strict_json.read(run) if there else {}), run


def base_in(adapter: Path) -> str | None:
    """How an adapter's run stored the frozen linears; None if no run.json says so."""
    facts, run = read_run_of(adapter)
    found = facts.get("base")
    if found is None or (type(found) is str and found in ("dense", *BASES)):
        return found
    allowed = f"dense, {', '.join(BASES)}"
    raise FormatError(run, "base", found, allowed, "out-of-range")


def dtype_in(adapter: Path) -> str | None:
    """The dtype that an adapter's run computed in; None if no run.json says so."""
    facts, run = read_run_of(adapter)
    numerics = facts.get("numerics")
    found = numerics.get("dtype") if type(numerics) is dict else None
    if found is None or (type(found) is str and found in DTYPES):
        return found
    raise FormatError(run, "numerics.dtype", found, ", ".join(DTYPES), "out-of-range")


def unfinished_note(adapter: Path) -> str | None:
    """A remark that an adapter's run did not finish; None if it did."""
    facts, _ = read_run_of(adapter)
    if facts.get("ended", "finished") in ("finished", "interrupted"):
        return None
    step = facts.get("kept_step")
    which = f", of step {step}," if type(step) is int else ""
    return f"the run did not finish; its best adapter so far{which} is used"


def run_summary(folder: Path) -> str | None:
    """A run's steps, last loss, end and kept step in one line; None without run.json."""
    run = folder / RUN
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
