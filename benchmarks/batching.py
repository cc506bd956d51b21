"""Which rows go together: does it cost anything in what is learned, and what does it gain in time?

    python benchmarks/batching.py [--seeds 3] [--steps 56]

SmolLM2-135M in the dtype that minift chooses here, LoRA of rank 8, the English chatterbot corpus as
examples/chatbot.py reads it (853 conversations, 16 an update, 45 more held out), one
epoch with linear decay:

    like, padded      rows of like length together (data/batches.py), padded
    like, auto        the same, packed where padding would cost more
    random, packed    rows in random order, packed behind each other: what `minift sft` does
    random, padded    rows in random order, padded

The two orders in several seeds each, which draw the rows' order and the adapter. A packed step's
gradient is that of the same rows padded (a test says so), so only the orders can differ in what
they teach: `held_out` is the mean loss of a target on the held-out rows, after the last step. Each
run is a process of its own, the arms in turn, in alternating order; `seconds` are of all steps
after the first two. Padded random rows teach what packed random rows do, and are run for one seed.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

MODEL, ROWS, WARM = "smollm2-135m-instruct", 16, 2
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "chatbot.py"
ARMS = {  # rows of like length together, and how they are laid
    "like, padded": (True, "off"),
    "like, auto": (True, "auto"),
    "random, packed": (False, "on"),
    "random, padded": (False, "off"),
}
ONCE = ("random, padded",)


def worker(arm: str, seed: int, steps: int) -> dict[str, Any]:
    import minift
    from minift.checkpoints.hub.assets import cached
    from minift.cli.models import base_dtype
    from minift.runtime import peak_memory

    like, pack = ARMS[arm]
    with redirect_stdout(sys.stderr):
        rows = runpy.run_path(str(EXAMPLE))["rows_of"](cached("chatterbot"))

    model, tokenizer = minift.load(MODEL, dtype=base_dtype("auto", 2, "cpu"))
    minift.attach(model, minift.LoRA(rank=8, alpha=16), seed=seed)
    train = [row for k, row in enumerate(rows) if k % 20]
    objective = minift.SFT(tokenizer, train=train, held_out=rows[::20], max_length=256, pack=pack)
    config = minift.TrainConfig(
        steps=steps,
        batch_size=ROWS,
        lr=5e-4,
        seed=seed,
        threads=2,
        eval_every=0,
        order="length" if like else "random",
    )
    seconds, tokens, last = [], [], [time.perf_counter()]

    def watch(progress: Any) -> None:
        now = time.perf_counter()
        seconds.append(now - last[0])
        tokens.append(progress.tokens)
        last[0] = now

    run = minift.fit(model, objective, config, watch=watch)
    # The last step's time has the evaluation in it.
    return {"held_out": run.evaluations[-1][1], "first_loss": run.losses[0],
            "seconds": sum(seconds[WARM:-1]), "tokens": sum(tokens[WARM:-1]),
            "peak_mb": peak_memory() / 2**20}  # fmt: skip


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
        return
    from certificate import write
    from peer import told

    from minift.checkpoints.hub.assets import cached

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=56)
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    for name in (MODEL, "chatterbot"):
        if cached(name) is None:
            sys.exit(f"{name} is not in the cache: minift download {name}")
    runs: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm in list(ARMS) if seed % 2 == 0 else list(ARMS)[::-1]:
            if seed == 0 or arm not in ONCE:
                words = ["--worker", arm, str(seed), str(options.steps)]
                runs[arm].append(told([sys.executable, __file__, *words]))
                print(seed, arm, runs[arm][-1], flush=True)
    arms = {}
    for arm, rows in runs.items():
        losses = [row["held_out"] for row in rows]
        arms[arm] = {
            "held_out": round(statistics.mean(losses), 4),
            "least": round(min(losses), 4),
            "most": round(max(losses), 4),
            "tokens_a_second": round(
                statistics.median(row["tokens"] / row["seconds"] for row in rows)
            ),
            "peak_mb": round(statistics.median(row["peak_mb"] for row in rows)),
        }
    settings = {"rows": ROWS, "steps": options.steps, "seeds": options.seeds}
    print(write("batching", {"settings": settings, "arms": arms, "runs": runs}, options.out))


if __name__ == "__main__":
    main()
