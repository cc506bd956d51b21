"""How long from the cached GGUF file to the first logits, minift against transformers?

    python benchmarks/load.py --peer-python PATH/TO/python

In turn, each in a fresh process on two threads, from one file to the logits of the same five ids.
torch's own import is taken off both sides; what else a side imports counts. minift's logits come
with its tokenizer loaded, transformers' without. The most likely next token must be the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL, IDS, THREADS = "smollm2-135m-instruct", "504,3575,282,4649,314", 2


def worker() -> None:
    """minift's side of peers/hf_load.py: the same keys."""
    ticks = [time.perf_counter()]
    import torch

    torch.set_num_threads(THREADS)
    ticks.append(time.perf_counter())
    import minift

    ticks.append(time.perf_counter())
    model, _ = minift.load(MODEL)
    ticks.append(time.perf_counter())
    with torch.no_grad():
        logits = model(torch.tensor([[int(i) for i in IDS.split(",")]]))
    best = int(logits[0, -1].argmax())
    ticks.append(time.perf_counter())
    from minift.runtime import peak_memory

    names = ("import_torch_s", "import_minift_s", "load_s", "first_logits_s")
    out: dict[str, Any] = {name: ticks[i + 1] - ticks[i] for i, name in enumerate(names)}
    out |= {"total_s": ticks[-1] - ticks[0], "peak_rss_mb": peak_memory() / 2**20, "argmax": best}
    print(json.dumps(out))


def run(command: list[str]) -> dict[str, Any]:
    from peer import told  # the worker's imports are timed

    found = told(command)
    return found | {"seconds": found["total_s"] - found["import_torch_s"]}


def main() -> None:
    sys.path.insert(0, str(REPOSITORY))
    from certificate import write

    from minift.checkpoints.hub.assets import cached

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with transformers")
    parser.add_argument("--pairs", type=int, default=7)
    options = parser.parse_args()
    path = cached(MODEL)
    if path is None:
        sys.exit(f"{MODEL} is not in the cache: minift download {MODEL}")
    peer = [options.peer_python, str(REPOSITORY / "benchmarks" / "peers" / "hf_load.py")]
    commands = {
        "minift": [sys.executable, __file__, "--worker"],
        "transformers": [*peer, str(path), "--ids", IDS, "--threads", str(THREADS)],
    }
    for command in commands.values():
        run(command)  # the file is in the system's cache for both
    rounds = []
    for n in range(options.pairs):
        order = list(commands) if n % 2 == 0 else list(reversed(commands))
        pair = {side: run(commands[side]) for side in order}
        assert pair["minift"]["argmax"] == pair["transformers"]["argmax"]
        rounds.append(pair)
        shown = {side: round(row["seconds"], 2) for side, row in pair.items()}
        print(shown, flush=True)
    ratios = [row["transformers"]["seconds"] / row["minift"]["seconds"] for row in rounds]
    result = {
        "what": "seconds from the cached GGUF file to the first logits, import of torch taken off",
        "threads": THREADS,
        "median_seconds": {
            side: round(statistics.median(row[side]["seconds"] for row in rounds), 3)
            for side in commands
        },
        "peak_rss_mb": {
            side: round(max(row[side]["peak_rss_mb"] for row in rounds)) for side in commands
        },
        "times_faster": {
            "median": round(statistics.median(ratios), 2),
            "least": round(min(ratios), 2),
            "most": round(max(ratios), 2),
        },
        "peer_versions": rounds[0]["transformers"]["versions"],
        "rounds": rounds,
    }
    print(write("load", result), json.dumps(result["times_faster"]))


if __name__ == "__main__":
    worker() if sys.argv[1:2] == ["--worker"] else main()
