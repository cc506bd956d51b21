"""Does minift compute what transformers and PEFT compute, on the real checkpoint?

    python benchmarks/parity.py --peer-python PATH/TO/python

SmolLM2-135M-Instruct from its GGUF file, float32, both sides on the ids that minift's tokenizer
gives. Compared, each with its limit, and the script fails where one is not kept:
  - logits at every position of 20 prompts (1e-3), and 40 greedy tokens after each, minift's in one
    left-padded batch (identical);
  - logits under an adapter that minift wrote and PEFT loads, and under one that PEFT trained for
    two steps and wrote and minift loads, in float64 on both sides (1e-4; in float32 the rounding of
    thirty layers alone is above that, and is written beside it). Each adapter must move the logits
    by more than 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from certificate import write
from peer import ask

import minift
from minift.checkpoints.hub.assets import cached
from minift.generation.decode import decode
from minift.model.transformer import Transformer
from minift.runtime import tuned

MODEL = "smollm2-135m-instruct"
NEW_TOKENS = 40
TEXTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "Review: a gorgeous , witty , seductive movie .\nSentiment:",
    "1, 2, 3, 5, 8, 13,",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three laws of thermodynamics are",
    "Q: How many legs does a spider have?\nA:",
    "SELECT name, COUNT(*) FROM orders",
    "Im Jahr 1789 begann in Frankreich",
    "To make an omelette, first",
    "E",
    "In 2019, 4,096 people took part; 17.5 % of them",
    "Photosynthesis is the process by which plants",
)
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about autumn.",
    "Name three colours.",
    "Why is the sky blue?",
    "Translate to Spanish: good morning",
)


@torch.no_grad()
def logits(model: Transformer, prompts: list[list[int]]) -> list[np.ndarray]:
    return [model(torch.tensor([ids]))[0].numpy() for ids in prompts]


def largest(ours: list[np.ndarray], theirs: np.lib.npyio.NpzFile) -> float:
    return max(float(np.abs(a - theirs[f"logits.{i}"]).max()) for i, a in enumerate(ours))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with transformers and PEFT")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    path = cached(MODEL)
    if path is None:
        sys.exit(f"{MODEL} is not in the cache: minift download {MODEL}")
    model, tokenizer = minift.load(MODEL)
    prompts = [tokenizer.encode(text) for text in TEXTS]
    prompts += [tokenizer.chat([{"role": "user", "content": q}], reply=True)[0] for q in QUESTIONS]
    model.eval()
    with tempfile.TemporaryDirectory() as name, tuned(2):
        work = Path(name)
        ids, out = work / "ids.json", work / "out.npz"
        ids.write_text(json.dumps({"prompts": prompts}))
        ask(options.peer_python, "hf_logits.py", path, ids, out, "--new-tokens", NEW_TOKENS,
             "--eos", tokenizer.eos)  # fmt: skip
        theirs = np.load(out)
        base = logits(model, prompts)
        result: dict[str, Any] = {"prompts": len(prompts), "logits": largest(base, theirs)}
        ours = decode(model, prompts, max_new_tokens=NEW_TOKENS, stop=frozenset({tokenizer.eos}))
        same = 0
        for i, text in enumerate(ours):
            peers = theirs[f"continuation.{i}"].tolist()
            same += text == peers[: -1 if peers[-1] == tokenizer.eos else None]
        result["greedy_identical"] = same

        minift.attach(model, minift.LoRA(rank=4))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    parameter.add_(noise, alpha=0.02)
        minift.save_adapter(model, work / "minift")
        job = {
            "model": str(path),
            "adapter": str(work / "minift"),
            "batches": [prompts[:4], prompts[4:8]],
            "masks": [[[1] * len(p) for p in part] for part in (prompts[:4], prompts[4:8])],
            "lrs": [1e-3, 1e-3],
        }
        (work / "job.json").write_text(json.dumps(job))
        ask(options.peer_python, "hf_sft.py", work / "job.json", work / "result.json",
             "--save", work / "peft")  # fmt: skip
        differences: dict[str, dict[str, float]] = {"minift": {}, "peft": {}}
        moved = {}
        for dtype in ("float32", "float64"):
            for writer, found in differences.items():
                ask(options.peer_python, "hf_logits.py", path, ids, out, "--new-tokens", 0,
                     "--dtype", dtype, "--adapter", work / writer)  # fmt: skip
                adapted, _ = minift.load(MODEL, dtype=dtype)
                minift.load_adapter(adapted.eval(), work / writer)
                mine = logits(adapted, prompts)
                found[dtype] = largest(mine, np.load(out))
                moved[writer] = max(
                    float(np.abs(a - b).max()) for a, b in zip(mine, base, strict=True)
                )
        result["adapter_written_by"] = differences
        result["adapter_moves_logits_by"] = moved
        result["peer_versions"] = json.loads(str(theirs["versions"]))
    print(json.dumps(result, indent=2), write("parity", result, options.out), sep="\n")
    kept = result["logits"] < 1e-3 and result["greedy_identical"] == len(prompts)
    kept = kept and all(found["float64"] < 1e-4 for found in differences.values())
    if not kept or min(moved.values()) < 1:
        sys.exit("parity: a limit is not kept")


if __name__ == "__main__":
    main()
