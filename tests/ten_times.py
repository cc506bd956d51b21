"""The same command ten times, five of them on a busy machine: the same numbers, bit for bit.

    python tests/ten_times.py [--times 10] [--small]

`minift sft` runs in a fresh process and folder each time, every second time with all cores kept
busy by other processes; then `minift eval` and a greedy `minift generate` with what it trained.
Compared are run.json's choices, every loss of metrics.jsonl, the bytes of the adapter, the held-out
loss and the text. Then, unless --small, the same twice in float32, there with a prompt whose
gradient many texts add to, and on a base in 8 and in 4 bits. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROMPT = ("--method", "prompt", "--pack", "on", "--dtype", "float32")
CASES = ((), ("--dtype", "float32"), PROMPT, ("--base", "int8"), ("--base", "nf4"))
CHOICES = (
    "numerics",
    "config",
    "trainable",
    "base",
    "steps",
    "final_loss",
    "held_out",
    "best_step",
)


def spin() -> None:
    """Keep one core busy until killed."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import numpy as np

    x = np.ones((256, 256), np.float32)
    while True:
        x @ x


@contextmanager
def busy(when: bool) -> Iterator[None]:
    workers = [
        multiprocessing.Process(target=spin, daemon=True) for _ in range(os.cpu_count() or 1)
    ]
    if when:
        for worker in workers:
            worker.start()
        time.sleep(1.0)
    try:
        yield
    finally:
        for worker in workers:
            if when:
                worker.kill()
                worker.join()


def write_rows(path: Path) -> None:
    """Rows of unlike lengths, so that they are packed, in several batches a step."""
    rows = [
        {"prompt": f"Count to {n}:", "completion": " " + " ".join(map(str, range(1, n + 1)))}
        for n in range(1, 17)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def minift(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "minift", *map(str, words)],
        capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"minift {' '.join(map(str, words))}: {done.stderr.decode()}")
    return done.stdout.decode()


def outcome(model: str, folder: Path, case: tuple[str, ...]) -> dict[str, object]:
    """All that must not differ, of one run and of what it trained."""
    data, run = folder / "rows.jsonl", folder / "run"
    write_rows(data)
    train = (
        "--steps",
        4,
        "--batch-size",
        4,
        "--eval-every",
        2,
        "--micro-batch-tokens",
        128,
        "--quiet",
    )
    minift("sft", "--model", model, "--data", data, "--out", run, *train, *case)
    facts = json.loads((run / "run.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    for step in steps:
        del step["seconds"]
    files = sorted((run / "adapter").iterdir())
    loss = json.loads(minift("eval", "--adapter", run, "--data", data, "--json"))
    text = minift("generate", "Count to 9:", "--adapter", run, "--max-new-tokens", 8)
    return {
        "choices": {key: facts.get(key) for key in CHOICES},
        "steps": steps,
        "adapter": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files},
        "held-out loss": loss,
        "text": text,
    }


def differences(one: object, other: object, where: str = "") -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key], f"{where} {key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return [d for k, (a, b) in enumerate(pairs) for d in differences(a, b, f"{where} {k}")]
    return [] if one == other else [f"{where.strip()}: {one} and {other}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="the command as it comes only")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    options = parser.parse_args()
    amiss = 0
    for case in CASES[:1] if options.small else CASES:
        first: dict[str, object] | None = None
        for k in range(2 if case else options.times):
            begin = time.monotonic()
            with tempfile.TemporaryDirectory() as name, busy(k % 2 == 1):
                found = outcome(options.model, Path(name), case)
            text = json.dumps(found).replace(name, "FOLDER")
            found = json.loads(text)
            first = first or found
            apart = differences(first, found)
            amiss += len(apart)
            state = "busy" if k % 2 else "idle"
            about = " ".join(case) or "as it comes"
            print(f"{about:<50} {k + 1:>2} {state}  {time.monotonic() - begin:5.1f} s  "
                  f"{'the first' if first is found else 'equal' if not apart else 'NOT EQUAL'}",
                  flush=True)  # fmt: skip
            for line in apart[:10]:
                print(f"    {line[:300]}")
        print(f"    {json.dumps(first['choices']['numerics'])}")  # type: ignore[index]
    print(f"{amiss} differences")
    return 1 if amiss else 0


if __name__ == "__main__":
    sys.exit(main())
