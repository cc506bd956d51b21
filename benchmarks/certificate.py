"""A result's birth certificate: commit, machine, versions, time. Shared by every benchmark."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
NOT_RESULTS = ":!benchmarks/results"


def certificate(commit: str | None = None) -> dict[str, object]:
    """`commit`: what a copy that is no repository was made from."""

    def git(*words: str) -> str | None:
        """None without a repository, or a git that will read it."""
        try:
            return subprocess.run(
                ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
            ).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    here = git("rev-parse", "HEAD") if (REPOSITORY / ".git").exists() else None
    changed = git("status", "--porcelain", "--", "minift", "benchmarks", NOT_RESULTS)

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        rows = [line.partition(":") for line in info.read_text().splitlines()]
        found = {key.strip(): value.strip() for key, _, value in rows}
        cpu = f"{found.get('model name', cpu)}, family {found.get('cpu family', '?')}"
    return {
        "commit": here or commit or "unknown: no repository here, and none named",
        # What made the number; results that an earlier benchmark wrote are no part of that.
        "clean": here is not None and changed == "",
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write(
    name: str, result: dict[str, object], folder: Path | None = None, commit: str | None = None
) -> Path:
    """The result as FOLDER/NAME.json, or among the published ones."""
    path = (folder or REPOSITORY / "benchmarks" / "results") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result | {"certificate": certificate(commit)}, indent=2) + "\n")
    return path
