"""Logits or scores of bases with an adapter folder each, by AdapterHub's `adapters`.

    python benchmarks/peers/adapters_hub.py JOB.json OUT.npz

JOB: [{"name", "base", "adapter", "again", "safe", "tokens": [[ids]], "mask": [[0 or 1]]}, ...].
Each base is loaded as the class that its config.json names, float32, eager attention; the adapter
(and its head) with `load_adapter`, then written to the folder `again` as the library writes it, as
safetensors or not. In the npz: NAME.out (B, T, V), (B, C) or, without a head, (B, T, D).

Fails unless the library has exactly the file's tensors. NAME.init is how far `adapters.init` alone
moves the outputs: adapters 1.2.0 swaps heads and positions of Llama's and Mistral's attention once
more than transformers 4.51 needs. Adapters stand around attention, not in it, so it gets
transformers' own forward back, after which `init` must not move anything.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from types import MethodType

os.environ["HF_HUB_OFFLINE"] = "1"

import adapters
import numpy
import torch
import transformers as hf
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention


def outputs(model, tokens, mask):
    given = {"input_ids": tokens, "attention_mask": mask}
    if model.config.model_type != "distilbert":
        offset = model.config.pad_token_id + 1 if model.config.model_type == "roberta" else 0
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + offset
    found = model(**given)
    out = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return out * mask[:, :, None] if out.dim() == 3 else out


@torch.no_grad()
def run(job):
    tokens, mask = torch.tensor(job["tokens"]), torch.tensor(job["mask"])
    classes = json.loads((Path(job["base"]) / "config.json").read_text())["architectures"]
    kind = getattr(hf, classes[0])
    given = {"torch_dtype": torch.float32, "attn_implementation": "eager"}
    model = kind.from_pretrained(job["base"], **given).eval()
    plain = outputs(model, tokens, mask)
    adapters.init(model)
    moved = float((outputs(model, tokens, mask) - plain).abs().max())
    for module in model.modules():
        for attention in (LlamaAttention, MistralAttention):
            if isinstance(module, attention):
                module.forward = MethodType(attention.forward, module)
    assert torch.allclose(outputs(model, tokens, mask), plain, rtol=1e-5, atol=1e-5), job["name"]
    name = model.load_adapter(job["adapter"], use_safetensors=True, set_active=True)
    file = load_file(Path(job["adapter"]) / "adapter.safetensors")
    own = {key: t for key, t in model.state_dict().items() if f"adapters.{name}." in key}
    assert own.keys() == file.keys(), sorted(own.keys() ^ file.keys())
    assert all(torch.equal(own[key], file[key]) for key in own), job["name"]
    model.eval().save_adapter(job["again"], name, use_safetensors=job["safe"])
    return outputs(model, tokens, mask).numpy(), moved


def main():
    versions = {name: version(name) for name in ("adapters", "transformers")}
    data = {"versions": numpy.array(json.dumps(versions))}
    for job in json.loads(Path(sys.argv[1]).read_text()):
        out, moved = run(job)
        data |= {f"{job['name']}.out": out, f"{job['name']}.init": numpy.array(moved)}
    numpy.savez(sys.argv[2], **data)


if __name__ == "__main__":
    main()
