"""Does AdapterHub's library load the bottlenecks that minift saves, and compute the same?

    python benchmarks/adapterhub.py --peer-python PATH/TO/python

The three designs on the tiny checkpoints of every family that the library has, and on the real
MiniLM: adapters far from their start are saved by minift, loaded by `adapters`, written again by it
and loaded by minift. Written for each, float32, right padding (decoders: left too): the largest
difference of a logit, a score or a last hidden state, over the largest of them or 1. Fails above
1e-5, or where the adapter hardly moves anything.
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

from minift.checkpoints.hub.assets import cached
from minift.checkpoints.open import load_model
from minift.interop.adapter_files import load_adapter, save_adapter
from minift.model.transformer import Transformer
from minift.peft.adapters import disabled, trainable
from minift.peft.bottleneck import DESIGNS, Bottleneck
from minift.peft.methods import attach

GOLDEN = REPOSITORY / "tests" / "golden"
BASES = (
    *("bert", "bert_body", "bert_labels", "roberta", "roberta_body", "roberta_labels"),
    *("distilbert", "distilbert_odd", "distilbert_labels", "gpt2", "gpt2_odd", "gpt2_body"),
    *("llama_labels", "mistral", "mistral_odd"),
)
MINILM = "minilm-l6-v2"
LIMIT, MOVES = 1e-5, 1e-2


def adapted(base: Path, design: str, seed: int) -> Transformer:
    """With an adapter as after training, a label head's own copy included."""
    model = attach(load_model(base).eval(), Bottleneck(design, reduction=5), name="toy")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@torch.no_grad()
def outputs(model: Transformer, job: dict[str, Any]) -> torch.Tensor:
    mask = torch.tensor(job["mask"])
    out = model(torch.tensor(job["tokens"]), mask=mask.bool())
    return out * mask[:, :, None] if out.dim() == 3 else out


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max().clamp(min=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with adapters")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    folders = {name: GOLDEN / "families" / name for name in BASES}
    folders["llama_gqa"] = GOLDEN / "llama_gqa"
    minilm = cached(MINILM)
    if minilm is None:
        sys.exit(f"{MINILM} is not in the cache: minift download {MINILM}")
    folders[MINILM] = minilm
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work, jobs, models = Path(temporary), [], {}
        for seed, (key, design) in enumerate((k, d) for k in folders for d in DESIGNS):
            model = adapted(folders[key], design, seed)
            right = (torch.arange(14) < torch.tensor([[14], [5], [1]])).long()
            tokens = (torch.arange(42).view(3, 14) * 17 + 5) % (model.config.vocab - 4) + 4
            for side, mask in (("right", right), ("left", right.flip(1))):
                if side == "left" and not model.config.causal:
                    continue
                name = f"{key}, {design}, {side}"
                save_adapter(model, work / name / "mine")
                # The library fails to write a masked language head's tied tensors as safetensors.
                safe = bool(seed % 2) and model.config.head != "mlm"
                jobs.append({
                    "name": name, "base": str(folders[key]), "adapter": str(work / name / "mine"),
                    "again": str(work / name / "theirs"), "safe": safe,
                    "tokens": (tokens * mask).tolist(), "mask": mask.tolist(),
                })  # fmt: skip
                models[name] = model
        theirs = answers(options.peer_python, "adapters_hub.py", work, jobs)
        for job in jobs:
            name, model = job["name"], models[job["name"]]
            mine, other = outputs(model, job), torch.from_numpy(theirs[f"{name}.out"])
            base = load_model(job["base"]).eval()
            again = outputs(load_adapter(base, work / name / "theirs", name="again"), job)
            with disabled(model):
                plain = outputs(model, job)
            row = {
                "saved_by_minift": difference(mine, other),
                "saved_by_adapters": difference(again, other),
                "moved": difference(mine, plain),
                "adapters_init_moved": float(theirs[f"{name}.init"]),
            }
            rows[name] = row
            print(name, row, flush=True)
        result = {"models": rows, "peer_versions": json.loads(str(theirs["versions"]))}
    print(write("adapterhub", result, options.out))
    worst = max(
        row[key] for row in rows.values() for key in ("saved_by_minift", "saved_by_adapters")
    )
    idle = [name for name, row in rows.items() if row["moved"] < MOVES]
    if worst > LIMIT or idle:
        sys.exit(f"adapterhub: {worst} is above {LIMIT}, or nothing moves in {idle}")
    print(f"largest difference {worst:.1e} in {len(rows)} batches")


if __name__ == "__main__":
    main()
