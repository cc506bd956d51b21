"""Runs in processes of their own, and the other side of a comparison: benchmarks/peers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

PEERS = Path(__file__).with_name("peers")


def output(command: Sequence[str]) -> str:
    """What a program prints; end with its last words if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[1:4])} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def told(command: Sequence[str]) -> dict[str, Any]:
    """The JSON of a program's last line."""
    found: dict[str, Any] = json.loads(output(command).splitlines()[-1])
    return found


def ask(python: str, script: str, *words: object) -> None:
    """Run a peer's program."""
    output([python, str(PEERS / script), *map(str, words)])


def answers(
    python: str, script: str, work: Path, jobs: Sequence[Mapping[str, Any]] | Mapping[str, Any]
) -> Mapping[str, np.ndarray]:
    """What it says of `jobs`, handed over as JSON: arrays by name."""
    job, out = work / "job.json", work / "out.npz"
    job.write_text(json.dumps(jobs))
    ask(python, script, job, out)
    found: Mapping[str, np.ndarray] = np.load(out)
    return found
