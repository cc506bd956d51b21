"""Last hidden states, logits or scores of checkpoint folders by transformers.

    python benchmarks/peers/hf_families.py JOB.json OUT.npz

JOB: [{"name", "folder", "tokens": [[ids]], "mask": [[0 or 1]]}, ...]. Each folder is loaded as the
class that its config.json names, float32; positions count the real tokens of a row. In the npz:
NAME.hidden (B, T, D) and, where the class has a head, NAME.out.
"""

import json
import sys
from pathlib import Path

import numpy
import torch
import transformers as hf


@torch.no_grad()
def run(folder, tokens, mask):
    config = hf.AutoConfig.from_pretrained(folder)
    kind = getattr(hf, config.architectures[0])
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    positions = (mask.cumsum(1) - 1).clamp(min=0) + offset
    found = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=positions,
        output_hidden_states=True,
    )
    out = {"hidden": found.hidden_states[-1].numpy()}
    if getattr(found, "logits", None) is not None:
        out["out"] = found.logits.numpy()
    return out


def main():
    data = {"versions": numpy.array(json.dumps({"transformers": hf.__version__}))}
    for job in json.loads(Path(sys.argv[1]).read_text()):
        found = run(job["folder"], torch.tensor(job["tokens"]), torch.tensor(job["mask"]))
        data |= {f"{job['name']}.{key}": value for key, value in found.items()}
    numpy.savez(sys.argv[2], **data)


if __name__ == "__main__":
    main()
