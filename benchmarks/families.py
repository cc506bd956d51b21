"""Does transformers load what minift saves, family by family, and compute the same?

    python benchmarks/families.py --peer-python PATH/TO/python

Every tiny checkpoint of tests/golden/families, and the real MiniLM, is loaded by minift, saved, and
loaded by transformers from the saved folder. Written for each: the largest difference of a last
hidden state and of a logit or score, float32, at real positions, right padding; for the tiny ones
also minift's own largest difference from the golden numbers (hidden states of every layer
included). Fails above 1e-4.
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
from certificate import REPOSITORY, write
from peer import answers

from minift.checkpoints.hub.assets import cached
from minift.checkpoints.open import load_model
from minift.checkpoints.save import folder_files
from minift.model.transformer import Transformer

GOLDEN = REPOSITORY / "tests" / "golden" / "families"
MINILM = "minilm-l6-v2"
LIMIT = 1e-4


def difference(mine: torch.Tensor, theirs: np.ndarray, mask: torch.Tensor) -> float:
    real = mask.bool() if mine.dim() == 3 else slice(None)
    return float((mine[real] - torch.from_numpy(theirs)[real]).abs().max())


@torch.no_grad()
def golden_error(model: Transformer, folder: Path) -> float:
    """The largest difference from what transformers computed with the original folder."""
    data = np.load(folder / "golden.npz")
    worst = 0.0
    for case in data["cases"]:
        tokens, mask = (torch.from_numpy(data[f"{case}.{key}"]) for key in ("tokens", "mask"))
        types = torch.from_numpy(data[f"{case}.types"]) if f"{case}.types" in data else None
        states: list[torch.Tensor] = []
        hooks = [
            block.register_forward_pre_hook(lambda m, inputs, seen=states: seen.append(inputs[0]))
            for block in model.blocks
        ]
        last = model(tokens, mask=mask.bool(), token_types=types, hidden_only=True)
        for hook in hooks:
            hook.remove()
        for mine, theirs in zip([*states, last], data[f"{case}.hidden"], strict=True):
            worst = max(worst, difference(mine, theirs, mask))
        if f"{case}.out" in data:
            out = model(tokens, mask=mask.bool(), token_types=types)
            worst = max(worst, difference(out, data[f"{case}.out"], mask))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", required=True, help="with transformers")
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    folders = {path.name: path for path in sorted(GOLDEN.iterdir())}
    minilm = cached(MINILM)
    if minilm is None:
        sys.exit(f"{MINILM} is not in the cache: minift download {MINILM}")
    folders[MINILM] = minilm
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        work, jobs, models = Path(name), [], {}
        for key, folder in folders.items():
            model = models[key] = load_model(folder).eval()
            saved = work / key
            saved.mkdir()
            for file, chunks in folder_files(model, {"pad_token_id": 0}).items():
                raw = chunks if isinstance(chunks, bytes) else b"".join(map(bytes, chunks))
                (saved / file).write_bytes(raw)
            lengths = torch.tensor([[14], [5], [1]])
            mask = (torch.arange(14) < lengths).long()
            tokens = (torch.arange(42).view(3, 14) * 17 + 5) % (model.config.vocab - 4) + 4
            tokens = torch.where(mask.bool(), tokens, 0)  # the tiny ones have 0 for padding
            jobs.append({"name": key, "folder": str(saved), "tokens": tokens.tolist(),
                         "mask": mask.tolist()})  # fmt: skip
        theirs = answers(options.peer_python, "hf_families.py", work, jobs)
        for job in jobs:
            key, model = job["name"], models[job["name"]]
            mask = torch.tensor(job["mask"])
            given = {"tokens": torch.tensor(job["tokens"]), "mask": mask.bool()}
            with torch.no_grad():
                hidden = model(**given, hidden_only=True)
                row = {"family": model.config.family, "real": key == MINILM}
                row["saved_hidden"] = difference(hidden, theirs[f"{key}.hidden"], mask)
                if f"{key}.out" in theirs:
                    row["saved_out"] = difference(model(**given), theirs[f"{key}.out"], mask)
            if key != MINILM:
                row["golden"] = golden_error(model, folders[key])
            rows[key] = row
            print(key, row, flush=True)
        result = {"models": rows, "peer_versions": json.loads(str(theirs["versions"]))}
    print(write("families", result, options.out))
    numbers = [v for row in rows.values() for v in row.values() if type(v) is float]
    if max(numbers) > LIMIT:
        sys.exit(f"families: {max(numbers)} is above {LIMIT}")


if __name__ == "__main__":
    main()
