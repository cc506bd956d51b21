"""Logits, scores or last hidden states of adapter folders by PEFT.

    python benchmarks/peers/peft_adapters.py JOB.json OUT.npz

JOB: [{"name", "base", "adapter", "tokens": [[ids]], "mask": [[0 or 1]]}, ...]. Each base is loaded
as the class that its config.json names, float32, and the adapter by PeftModel.from_pretrained,
which only warns of tensors without a place: here they are a failure. Positions count the real
tokens of a row. In the npz: NAME, as long as the tokens (outputs of virtual tokens are cut off).
"""

import json
import sys
import warnings
from pathlib import Path

import numpy
import peft
import torch
import transformers as hf
from safetensors import safe_open


def count_real(offset):
    def hook(module, args, kwargs):
        given = kwargs.get("inputs_embeds")
        if given is None:
            given = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        positions = (kwargs["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
        return args, kwargs | {"position_ids": positions[:, -given.shape[1] :] + offset}

    return hook


def load(base, adapter):
    config = hf.AutoConfig.from_pretrained(base)
    kind = getattr(hf, config.architectures[0])
    model = kind.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing.*")
        warnings.filterwarnings("error", message=".*unexpected.*")
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with safe_open(f"{adapter}/adapter_model.safetensors", "pt") as file:
        mine = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    there = peft.get_peft_model_state_dict(model, save_embedding_layers=True)
    for name, tensor in mine.items():
        assert name in there, f"no place for {name}"
        assert torch.equal(there[name], tensor), f"{name} was not loaded"
    return model


@torch.no_grad()
def run(job):
    model, mask = load(job["base"], job["adapter"]), torch.tensor(job["mask"])
    tokens, config = torch.tensor(job["tokens"]), model.get_base_model().config
    offset = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    backbone = model.get_base_model().base_model
    if config.model_type != "distilbert":  # which has no such argument
        backbone.register_forward_pre_hook(count_real(offset), with_kwargs=True)
    out = model(input_ids=tokens, attention_mask=mask)
    found = out.logits if "logits" in out else out.last_hidden_state
    return found[:, -tokens.shape[1] :].numpy() if found.dim() == 3 else found.numpy()


def main():
    versions = {"transformers": hf.__version__, "peft": peft.__version__}
    data = {"versions": numpy.array(json.dumps(versions))}
    failed = []
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            data[job["name"]] = run(job)
        except Exception as error:
            failed.append(f"{job['name']}: {type(error).__name__}: {error}")
    numpy.savez(sys.argv[2], **data)
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
