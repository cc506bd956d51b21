"""Does minift's fine-tuning reach what transformers + PEFT reach, row by row?

    python benchmarks/reference.py --peer-python PATH/TO/python

The quickstart's job in both: the same checkpoint, prompts, rows in the same order, learning rates
and initial adapter, float32. Both score the whole test set of the published split before and after.
Written: both accuracies with their intervals, the share of rows that both decide alike, the largest
difference of a step's loss, and both times (in turn, on the same threads).
Also in float64 on the first four layers, fifty steps: the largest difference of a loss. Fails where
that is above 1e-9, or where fewer than 97 % of the rows are decided alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from certificate import write

import minift
from minift.checkpoints.download import cached
from minift.cli.quickstart import DATA, MODEL, RECIPE
from minift.data.split import published_reviews
from minift.model.transformer import Transformer
from minift.peft.lora import LoRA
from minift.runtime import tuned
from minift.train.evaluate import Accuracy, gold_of, label_ids, label_logprobs
from minift.train.loop import fit, order
from minift.train.objectives import SFT
from minift.train.optimizer import learning_rate

PEER = Path(__file__).with_name("peers") / "hf_sft.py"


def cut(model: Transformer, layers: int) -> Transformer:
    """The first layers alone."""
    model.blocks = model.blocks[:layers]
    model.config = replace(model.config, layers=layers)
    return model


def run_minift(
    steps: int, layers: int | None, dtype: str, folder: Path
) -> tuple[dict[str, object], dict[str, object]]:
    """minift's own numbers, and the job for the peer."""
    model, tokenizer = minift.load(MODEL, dtype=dtype)
    path = cached(MODEL)
    assert path is not None
    reviews = cached(DATA)
    assert reviews is not None
    if layers is not None:
        model = cut(model, layers)
    train, test = published_reviews(reviews)
    objective = SFT(tokenizer, train, max_length=512)
    config = replace(RECIPE, steps=steps, threads=2)
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
    mine: dict[str, object] = {}
    prompts, words, gold = [], [], []
    if layers is None:
        prompts, words = label_ids(tokenizer, test, 512)
        gold = gold_of(test)
        job |= {"eval_prompts": prompts, "eval_labels": gold, "label_ids": words}
    run = fit(model, objective, config)
    mine |= {"losses": run.losses, "seconds": run.seconds}
    if prompts:
        with tuned(2):
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
        result[f"agreement_{when}"] = float((ours == peers).double().mean())
    result["minift_train_seconds"] = mine["seconds"]
    result["peft_train_seconds"] = theirs["train_seconds"]
    return result


def peer(python: str, job: dict, folder: Path, *options: str) -> dict:
    (folder / "job.json").write_text(json.dumps(job))
    command = [python, str(PEER), str(folder / "job.json"), str(folder / "result.json"), *options]
    subprocess.run(command, check=True)
    return json.loads((folder / "result.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--steps", type=int, default=RECIPE.steps)
    parser.add_argument("--only", choices=("float32", "float64"))
    parser.add_argument("--out", type=Path, help="the folder of the result files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for dtype, steps, layers in (("float64", 50, 4), ("float32", arguments.steps, None)):
            if arguments.only not in (None, dtype):
                continue
            folder = Path(name) / dtype
            folder.mkdir()
            mine, job = run_minift(steps, layers, dtype, folder)
            options = [] if layers is None else ["--layers", str(layers), "--dtype", dtype]
            theirs = peer(arguments.peer_python, job, folder, *options)
            result = compare(mine, theirs) | {"peer_versions": theirs["versions"]}
            path = write(f"reference_{dtype}", result, arguments.out)
            print(json.dumps(result, indent=2), path, sep="\n", flush=True)
            if dtype == "float64" and result["largest_loss_difference"] > 1e-9:
                sys.exit("reference: a loss differs by more than 1e-9")
            if dtype == "float32" and result["agreement_after"] < 0.97:
                sys.exit("reference: fewer than 97 % of the rows are decided alike")


if __name__ == "__main__":
    main()
