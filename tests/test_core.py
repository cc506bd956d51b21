"""The core stands alone: it trains, decodes and merges without a file format or a tokenizer.

A fresh process blocks every module of minift but those of CORE, builds a tiny model from a config,
attaches each method, trains it for two steps, decodes greedily and merges. Its numbers are those of
the whole package.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Modules, and packages with all that is in them. `fit` and `decode` ask for anything else when they
# need it: a run's folder, a tokenizer, a CUDA graph.
CORE = (
    *("errors", "storage", "runtime", "kernels", "model", "data.batches", "generation"),
    *("peft", "train.config", "train.step", "train.loop", "train.keeper", "train.optimizer"),
    *("train.flat_parameters", "train.objectives.protocol", "train.objectives.batch"),
    "train.evaluation.loss",
)

SCRIPT = '''
import json, sys

CORE = {core!r}


class Bar:
    """Refuses every module of minift that is not of the core."""

    def find_spec(self, name, path=None, target=None):
        words = name.split(".")
        if words[0] != "minift" or len(words) == 1:
            return None
        inside = ".".join(words[1:])
        for own in CORE:
            if own == inside or inside.startswith(own + ".") or own.startswith(inside + "."):
                return None
        raise ImportError("barred: " + name)


if {alone!r}:
    sys.meta_path.insert(0, Bar())

import torch

from minift.generation.decode import decode
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.merge import merge
from minift.peft.methods import METHODS, attach
from minift.train.config import TrainConfig
from minift.train.loop import fit
from minift.train.objectives.batch import token_batches

ROWS = [([3, 1, 4, 1, 5], [0, 0, 1, 1, 1]), ([2, 7, 1], [0, 1, 1]), ([9, 2, 6, 5], [0, 0, 0, 1])]


class Rows:
    """The least that `fit` takes: token ids, and which of them are targets."""

    rows, packs, tokenizer, fits_cuda_graph = len(ROWS), False, None, False

    def check(self, model): pass
    def load_window(self, indices): pass
    def lengths(self, indices): return [len(ROWS[i][0]) for i in indices]
    def batches(self, indices, most): return token_batches([ROWS[i] for i in indices], most)
    def held_out_batches(self, max_tokens): yield from token_batches(ROWS[:1], max_tokens)
    def example(self): return ROWS[0]
    def summary(self): return {{"objective": "rows"}}

    def loss_sum(self, model, batch):
        hidden = model(batch.tokens, selected=batch.loss_mask, hidden_only=True)
        return model.nll(hidden, batch.targets[batch.loss_mask])


found = {{}}
for word, (config, _) in METHODS.items():
    torch.manual_seed(0)
    model = Transformer(ModelConfig("llama", 16, 8, 2, 2, 1, 4, 12, 64))
    attach(model, config(rank=2) if word == "lora" else config(), seed=1)
    run = fit(model, Rows(), TrainConfig(steps=2, batch_size=3, lr=0.02, threads=1))
    (ids,) = decode(model, [[3, 1, 4]], max_new_tokens=5)
    found[word] = [*run.losses, *map(float, ids)]
    if word in ("lora", "ia3", "bitfit"):
        (again,) = decode(merge(model), [[3, 1, 4]], max_new_tokens=5)
        assert again == ids
print(json.dumps(found))
'''


def run(*, alone: bool) -> dict[str, list[float]]:
    program = SCRIPT.format(core=CORE, alone=alone)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def test_the_core_alone_computes_what_the_whole_package_does() -> None:
    alone, whole = run(alone=True), run(alone=False)
    assert len(alone) == 7
    for word, numbers in whole.items():
        assert alone[word] == pytest.approx(numbers, rel=1e-6), word
        assert numbers[1] < numbers[0], f"{word} does not learn"


def test_what_the_core_names_is_there() -> None:
    package = Path(__file__).parents[1] / "minift"
    for name in CORE:
        place = package / name.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").exists(), name
