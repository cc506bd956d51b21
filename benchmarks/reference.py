"""Does minift's fine-tuning reach what transformers + PEFT reach, row by row?

    python benchmarks/reference.py --peer-python PATH/TO/python

The same checkpoint, prompts, rows in the same order, learning rates and initial adapter in both.

    float64     fifty steps on the first four layers: a loss may differ by 1e-9
    float32     the defaults, 100 steps of 16 at 5e-4: both score the whole published test set;
                accuracies must be within a point, 97 % of the rows be decided alike
    quickstart  its own 200 steps of 8 at 2e-3: within a point. At this learning rate rounding
                grows: as a control minift runs once more on one thread, which only changes the
                order of its sums, and the rows that both of its runs decide alike are written too

"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from certificate import write

import minift
from minift.checkpoints.hub.assets import cached
from minift.cli.quickstart import DATA, MODEL, RECIPE
from minift.data.split import published_reviews
from minift.model.transformer import Transformer
from minift.peft.lora import LoRA
from minift.runtime import tuned
from minift.train.config import TrainConfig
from minift.train.evaluation.labels import Accuracy, gold_of, label_ids, label_logprobs
from minift.train.loop import fit, order
from minift.train.objectives.sft import SFT
from minift.train.optimizer import learning_rate

PEER = Path(__file__).with_name("peers") / "hf_sft.py"


def cut(model: Transformer, layers: int) -> Transformer:
    """The first layers alone."""
    model.blocks = model.blocks[:layers]
    model.config = replace(model.config, layers=layers)
    return model


@dataclass(frozen=True)
class Job:
    """One comparison; `layers` None is the whole model, which is then scored on the test set."""

    config: TrainConfig
    dtype: str = "float32"
    layers: int | None = None
    alike: float = 0.0  # the least share of rows that both must decide alike
    control: bool = False


JOBS = {
    "float64": Job(replace(RECIPE, steps=50), dtype="float64", layers=4),
    "float32": Job(replace(RECIPE, steps=100, batch_size=16, lr=5e-4), alike=0.97),
    "quickstart": Job(RECIPE, control=True),
}


def run_minift(
    asked: Job, folder: Path, threads: int = 2
) -> tuple[dict[str, object], dict[str, object]]:
    """minift's own numbers, and the job for the peer."""
    steps, layers, dtype = asked.config.steps, asked.layers, asked.dtype
    model, tokenizer = minift.load(MODEL, dtype=dtype)
    path = cached(MODEL)
    assert path is not None
    reviews = cached(DATA)
    assert reviews is not None
    if layers is not None:
        model = cut(model, layers)
    train, test = published_reviews(reviews)
    objective = SFT(tokenizer, train, max_length=512)
    config = replace(asked.config, threads=threads)
    minift.attach(model, LoRA(), seed=config.seed)
    minift.save_adapter(model, folder / "initial")
    rows = [
        [objective.encode(i) for i in indices]
        for _, indices in zip(range(steps), order(objective, config), strict=False)
    ]
    warm = round(config.warmup * steps)
    job: dict[str, object] = {
        "model": str(path),
        "adapter": str(folder / "initial"),
        "batches": [[ids for ids, _ in step] for step in rows],
        "masks": [[mask for _, mask in step] for step in rows],
        "lrs": [learning_rate(config.schedule, config.lr, warm, steps, k) for k in range(steps)],
        "clip": config.clip,
        "betas": [config.beta1, config.beta2],
        "eps": config.eps,
        "weight_decay": config.weight_decay,
        "threads": 2,
        "dtype": dtype,
        "adapter_dtype": dtype,
    }
    mine: dict[str, Any] = {}
    prompts, words, gold = [], [], []
    if layers is None:
        prompts, words = label_ids(tokenizer, test, 512)
        gold = gold_of(test)
        job |= {"eval_prompts": prompts, "eval_labels": gold, "label_ids": words}
    run = fit(model, objective, config)
    mine["losses"] = run.losses
    if prompts:
        with tuned(threads):
            scores = label_logprobs(model, prompts, words)
            with minift.disabled(model):
                before = label_logprobs(model, prompts, words)
        mine |= {"after": scores.tolist(), "before": before.tolist(), "gold": gold}
    return mine, job


def compare(mine: dict, theirs: dict) -> dict[str, object]:
    loss = max(abs(a - b) for a, b in zip(mine["losses"], theirs["losses"], strict=True))
    result: dict[str, object] = {"steps": len(mine["losses"]), "largest_loss_difference": loss}
    if "gold" not in mine:
        return result
    gold = torch.tensor(mine["gold"])
    for when in ("before", "after"):
        ours = torch.tensor(mine[when]).argmax(1)
        peers = torch.tensor(theirs[f"label_logp_{when}"]).argmax(1)
        for name, choice in (("minift", ours), ("peft", peers)):
            accuracy = Accuracy(int((choice == gold).sum()), len(gold))
            result[f"{name}_{when}"] = accuracy.share
            result[f"{name}_{when}_interval"] = list(accuracy.interval)
        result[f"agreement_{when}"] = alike(mine[when], theirs[f"label_logp_{when}"])
    return result


def alike(one: list, other: list) -> float:
    """The share of rows whose most likely label is the same."""
    return float((torch.tensor(one).argmax(1) == torch.tensor(other).argmax(1)).double().mean())


def peer(python: str, job: dict, folder: Path, *options: str) -> dict:
    (folder / "job.json").write_text(json.dumps(job))
    command = [python, str(PEER), str(folder / "job.json"), str(folder / "result.json"), *options]
    subprocess.run(command, check=True)
    return json.loads((folder / "result.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--only", choices=JOBS)
    parser.add_argument("--out", type=Path, help="the folder of the result files")
    arguments = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, asked in JOBS.items():
            if arguments.only not in (None, name):
                continue
            folder = Path(temporary) / name
            folder.mkdir()
            mine, job = run_minift(asked, folder)
            cut_too = ["--layers", str(asked.layers), "--dtype", asked.dtype]
            theirs = peer(arguments.peer_python, job, folder, *(cut_too if asked.layers else []))
            config = asked.config
            recipe = {"steps": config.steps, "batch": config.batch_size, "lr": config.lr}
            result = recipe | compare(mine, theirs) | {"peer_versions": theirs["versions"]}
            if asked.control:
                again, _ = run_minift(asked, folder / "control", threads=1)
                result["agreement_of_minift_with_itself_on_one_thread"] = alike(
                    mine["after"], again["after"]
                )
            path = write(f"reference_{name}", result, arguments.out)
            print(json.dumps(result, indent=2), path, sep="\n", flush=True)
            failed += problems(name, asked, result)
    if failed:
        sys.exit("\n".join(failed))


def problems(name: str, asked: Job, result: dict) -> list[str]:
    """What is not as it must be."""
    if asked.layers is not None:
        much = result["largest_loss_difference"] > 1e-9
        return [f"{name}: a loss differs by more than 1e-9"] * much
    found = []
    if abs(result["minift_after"] - result["peft_after"]) > 0.01:
        found.append(f"{name}: the accuracies are more than a point apart")
    if result["agreement_after"] < asked.alike:
        found.append(f"{name}: fewer than {asked.alike:.0%} of the rows are decided alike")
    return found


if __name__ == "__main__":
    main()
