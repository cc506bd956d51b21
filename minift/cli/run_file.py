"""What a run's run.json says that later commands go by: the kind of base, the dtype, its end.

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

NAME, ADAPTER_FOLDER = "run.json", "adapter"


def of_adapter(adapter: Path) -> tuple[dict[str, Any], Path]:
    """run.json of an adapter in its run's folder, and its path; nothing where there is none."""
    run = adapter.parent / NAME
    there = adapter.name == ADAPTER_FOLDER and os.path.exists(run)
    return (strict_json.read(run) if there else {}), run


def base_in(adapter: Path) -> str | None:
    """How the run of an adapter stored the frozen linears; None where no run says so."""
    facts, run = of_adapter(adapter)
    found = facts.get("base")
    if found is None or (type(found) is str and found in ("dense", *BASES)):
        return found
    allowed = f"dense, {', '.join(BASES)}"
    raise FormatError(run, "base", found, allowed, "out-of-range")


def dtype_in(adapter: Path) -> str | None:
    """The dtype that the run of an adapter computed in; None where no run says so."""
    facts, run = of_adapter(adapter)
    numerics = facts.get("numerics")
    found = numerics.get("dtype") if type(numerics) is dict else None
    if found is None or (type(found) is str and found in DTYPES):
        return found
    raise FormatError(run, "numerics.dtype", found, ", ".join(DTYPES), "out-of-range")


def ended_badly(adapter: Path) -> str | None:
    """That the run of an adapter did not come to its end, in words; None where it did."""
    facts, _ = of_adapter(adapter)
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
