"""Does PEFT load the adapters that minift saves, method by method, and compute the same?

    python benchmarks/adapters.py --peer-python PATH/TO/python

Every method on a tiny checkpoint of every family of tests/golden/families is attached by minift,
moved far from its start, saved, and loaded by PEFT from the saved folder. Written for each: the
largest difference of a logit, score or last hidden state at real positions, right padding, relative
to the largest number, float32; and how far the adapter moves the base. BitFit is left out: PEFT has
no such method. Fails above 1e-5, and where PEFT says that it found no place for a tensor.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from certificate import REPOSITORY, write
from peer import answers

import minift
from minift.checkpoints.open import load_model
from minift.model.transformer import Transformer
from minift.peft.adapters import disabled, trainable
from minift.peft.methods import attach

GOLDEN = REPOSITORY / "tests" / "golden" / "families"
LIMIT = 1e-5
METHODS: dict[str, object] = {
    "lora": minift.LoRA(rank=3, alpha=5, ranks=(("down", 2),), alphas=(("k", 1.0),)),
    "rslora": minift.LoRA(rank=4, alpha=5, rslora=True, targets=("q", "up")),
    "embed": minift.LoRA(rank=2, targets=("v", "embed")),
    "head": minift.LoRA(rank=2, targets=("q", "head")),
    "tokens": minift.LoRA(rank=2, targets=("v",), tokens=(5, 9)),
    "dora": minift.LoRA(rank=2, dora=True),
    "pissa": minift.LoRA(rank=2, lora_init="pissa"),
    "ia3": minift.IA3(),
    "prefix": minift.Prefix(3),
    "prefix_mlp": minift.Prefix(3, prefix_mlp=5),
    "prompt": minift.Prompt(3),
    "ptuning": minift.PTuning(3, encoder_hidden=5),
    "ptuning_lstm": minift.PTuning(3, "lstm", encoder_hidden=4),
}


def moved(model: Transformer) -> Transformer:
    """As after training: noise on every parameter."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def fits(config: object, method: str, model: Transformer) -> bool:
    """Whether the method has a place on the model, in minift and in PEFT."""
    if method == "head" and model.config.head != "lm":
        return False
    if method == "tokens" and model.config.head == "mlm":
        return False  # PEFT leaves out the bias of such a head where it is tied to the table
    if isinstance(config, minift.LoRA | minift.IA3):
        return True
    # PEFT's prompt learning is for language models, classifiers and bodies, and its prefix needs a
    # model with a cache.
    prefix = isinstance(config, minift.Prefix)
    return model.config.head != "mlm" and not (prefix and model.config.family == "distilbert")


def lengths(config: object, model: Transformer) -> torch.Tensor:
    """Of the rows: unpadded where transformers reads a row's score at its last column, padded or
    not, as its classifying decoders do when they are given embeddings instead of ids."""
    virtual = isinstance(config, minift.Prompt | minift.PTuning)
    blind = virtual and model.config.head == "label" and model.config.causal
    return torch.tensor([[7], [7], [7]] if blind else [[7], [4], [1]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with transformers and PEFT")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work, jobs, outs = Path(name), [], {}
        for folder in sorted(GOLDEN.iterdir()):
            for method, config in METHODS.items():
                model = load_model(folder).eval()
                if not fits(config, method, model):
                    continue
                key = f"{folder.name}-{method}"
                moved(attach(model, config))
                minift.save_adapter(model, work / key)
                mask = (torch.arange(7) < lengths(config, model)).long()
                tokens = (torch.arange(21).view(3, 7) * 17 + 5) % (model.config.vocab - 4) + 4
                tokens = torch.where(mask.bool(), tokens, 0)  # classifiers have 0 for padding
                with torch.no_grad():
                    outs[key] = model(tokens, mask=mask.bool())
                    with disabled(model):
                        effect = (model(tokens, mask=mask.bool()) - outs[key]).abs().max()
                rows[key] = {"effect": float(effect)}
                jobs.append({"name": key, "base": str(folder), "adapter": str(work / key),
                             "tokens": tokens.tolist(), "mask": mask.tolist()})  # fmt: skip
        theirs = answers(options.peer_python, "peft_adapters.py", work, jobs)
        for job in jobs:
            key, mask = job["name"], torch.tensor(job["mask"]).bool()
            mine, other = outs[key], torch.from_numpy(theirs[key])
            real = mask if mine.dim() == 3 else slice(None)
            size = max(1.0, float(mine[real].abs().max()))
            rows[key]["difference"] = float((mine[real] - other[real]).abs().max()) / size
            print(f"{key:<32} {rows[key]['difference']:.1e}", flush=True)
        result = {"adapters": rows, "peer_versions": json.loads(str(theirs["versions"]))}
    print(write("adapters", result, options.out))
    worst = max(rows, key=lambda key: rows[key]["difference"])
    print(f"{len(rows)} adapters, the worst {worst}: {rows[worst]['difference']:.1e}")
    if rows[worst]["difference"] > LIMIT:
        sys.exit(f"adapters: {worst} is above {LIMIT}")


if __name__ == "__main__":
    main()
