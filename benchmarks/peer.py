"""Asking the other side of a comparison: a program of benchmarks/peers, in its own environment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PEERS = Path(__file__).with_name("peers")


def ask(python: str, script: str, *words: object) -> None:
    """Run it, and end with its last words if it fails."""
    command = [python, str(PEERS / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script} failed:\n{done.stderr[-3000:]}")


def answers(
    python: str, script: str, work: Path, jobs: Sequence[Mapping[str, Any]]
) -> Mapping[str, np.ndarray]:
    """What it says of `jobs`, handed over as JSON: arrays by name."""
    job, out = work / "job.json", work / "out.npz"
    job.write_text(json.dumps(jobs))
    ask(python, script, job, out)
    found: Mapping[str, np.ndarray] = np.load(out)
    return found
