"""Make adapterhub/: adapters as AdapterHub's `adapters` library writes them, and what it computes.

    python tests/golden/make_adapterhub.py [NAME ...]

Runs in the environment of benchmarks/peers/adapters.txt; minift is not imported. The bases are tiny
checkpoints of this folder. Every adapter tensor is a chirp, far from its start. float32, eager
attention; without an adapter the model must give what transformers gives (`same_base`). Each folder
adapterhub/NAME holds what `save_adapter` wrote (safetensors, or PyTorch's .bin where the case says
so; head files where it says so), and golden.npz with
    base (str)                     the model's folder beside this file
    head (str)                     its class
and for each case C of `cases`:
    C.tokens, C.mask (B, T)        mask 1 = real
    C.out                          logits (B, T, V), labels' scores (B, C), or last hidden states
    C.plain                        the same with the adapter switched off, its head left on
    C.grad.<key>                   of sum(out * chirp), for each tensor of the adapter's file
Values at padded positions mean nothing and are stored as zeros.
"""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MethodType

os.environ["HF_HUB_OFFLINE"] = "1"

import adapters
import numpy
import torch
import transformers as hf
from adapters import DoubleSeqBnConfig, ParBnConfig, SeqBnConfig
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention

HERE = Path(__file__).parent
VERSIONS = {name: version(name) for name in ("adapters", "transformers", "torch")}


@dataclass
class Case:
    base: str
    config: adapters.BnConfig
    name: str = "toy"
    safe: bool = True
    head: bool = False


BERT, GPT2, LLAMA = "families/bert", "families/gpt2_odd", "llama_gqa"
CASES = {
    "bert_houlsby": Case(BERT, DoubleSeqBnConfig(reduction_factor=4)),
    "bert_pfeiffer": Case(BERT, SeqBnConfig(reduction_factor=5), "sst-2_Pfeiffer", safe=False),
    "bert_parallel": Case(BERT, ParBnConfig()),
    "gpt2_houlsby": Case(GPT2, DoubleSeqBnConfig(reduction_factor=4), safe=False),
    "gpt2_pfeiffer": Case(GPT2, SeqBnConfig(reduction_factor=2.5, scaling=0.5)),
    "gpt2_parallel": Case(GPT2, ParBnConfig(reduction_factor=100)),  # one unit wide
    "llama_houlsby": Case(LLAMA, DoubleSeqBnConfig(reduction_factor=8, non_linearity="gelu")),
    "llama_pfeiffer": Case(LLAMA, SeqBnConfig(reduction_factor=6, mh_adapter=True)),
    "llama_parallel": Case(LLAMA, ParBnConfig(dropout=0.1), safe=False),
    # Bases of other kinds, heads of their own.
    "bert_body": Case("families/bert_body", SeqBnConfig(reduction_factor=3, non_linearity="tanh")),
    "bert_labels": Case("families/bert_labels", DoubleSeqBnConfig(reduction_factor=8), head=True),
    "distilbert_labels": Case(
        "families/distilbert_labels", SeqBnConfig(reduction_factor=8), safe=False, head=True
    ),
    "roberta": Case("families/roberta", SeqBnConfig(non_linearity="gelu_new")),
    "mistral": Case("families/mistral", ParBnConfig(mh_adapter=True), head=True),
    "llama_labels": Case("families/llama_labels", DoubleSeqBnConfig(), head=True),
}


def chirp(shape, seed):
    """Numbers in -1..1 by formula: sin of a quadratic, so that no matrix is of low rank."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + 1
    return torch.sin(0.0137 * i * i + 0.7 * i + seed).reshape(shape)


def load(case):
    """The base with the adapter, active and trained; its tensors by their keys in the file."""
    folder = HERE / case.base
    kind = getattr(hf, json.loads((folder / "config.json").read_text())["architectures"][0])
    model = kind.from_pretrained(folder, torch_dtype=torch.float32, attn_implementation="eager")
    same_base(model.eval())
    model.add_adapter(case.name, config=case.config)
    model.train_adapter(case.name)
    model.config.name_or_path = case.base.rpartition("/")[2]
    model.base_model.config.name_or_path = model.config.name_or_path
    own = {k: p for k, p in model.named_parameters() if f"adapters.{case.name}." in k}
    with torch.no_grad():
        for seed, weight in enumerate(own.values()):
            size = 1 / weight.shape[1] ** 0.5 if weight.dim() == 2 else 0.3
            weight.copy_(chirp(weight.shape, seed + 50) * size)
        if case.head:
            for seed, (name, weight) in enumerate(model.named_parameters()):
                if "classifier" in name or "score" in name:
                    weight.copy_(chirp(weight.shape, seed + 9) * 0.4)
    return model.eval(), own


@torch.no_grad()
def same_base(model):
    """adapters.init, and then the base as it was.

    adapters 1.2.0 swaps heads and positions of Llama's and Mistral's attention once more than
    transformers 4.51 needs, so that even without an adapter the model is another one. Adapters
    stand around attention, not in it: it gets transformers' own forward back.
    """
    made = batches(model)
    before = [run(model, *batch) for batch in made.values()]
    adapters.init(model)
    for module in model.modules():
        for kind in (LlamaAttention, MistralAttention):
            if isinstance(module, kind):
                module.forward = MethodType(kind.forward, module)
    for batch, out in zip(made.values(), before, strict=True):
        assert torch.allclose(run(model, *batch), out, rtol=0, atol=1e-5), type(model)


def batches(model):
    """Rows of 9, 5 and 1 tokens. Token 0 is padding for the classes that look for it."""
    vocab, lengths = model.config.vocab_size, torch.tensor([[9], [5], [1]])
    tokens = (torch.arange(27).view(3, 9) * 17 + 5) % (vocab - 1) + 1
    right = (torch.arange(9) < lengths).long()
    found = {"right": right, "left": right.flip(1)}
    cls = type(model).__name__
    if "SequenceClassification" in cls and "Llama" not in cls:
        del found["left"]  # transformers reads the first position, padded or not
    return {name: (tokens * mask, mask) for name, mask in found.items()}


def run(model, tokens, mask):
    given = {"attention_mask": mask}
    if model.config.model_type != "distilbert":
        offset = model.config.pad_token_id + 1 if model.config.model_type == "roberta" else 0
        given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + offset
    found = model(input_ids=tokens, **given)
    out = found.logits if hasattr(found, "logits") else found.last_hidden_state
    return out * mask[:, :, None] if out.dim() == 3 else out


def main():
    for name in sys.argv[1:] or CASES:
        case = CASES[name]
        model, own = load(case)
        folder = HERE / "adapterhub" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        given = {"use_safetensors": case.safe}
        if hasattr(model, "save_head"):
            given["with_head"] = case.head
        model.save_adapter(str(folder), case.name, **given)
        data = {"versions": numpy.array(json.dumps(VERSIONS))}
        data |= {"base": numpy.array(case.base), "head": numpy.array(type(model).__name__)}
        made = batches(model)
        for key, (tokens, mask) in made.items():
            model.zero_grad()
            out = run(model, tokens, mask)
            (out * chirp(out.shape, 99)).sum().backward()
            data |= {f"{key}.tokens": tokens.numpy(), f"{key}.mask": mask.numpy()}
            data[f"{key}.out"] = out.detach().numpy()
            data |= {f"{key}.grad.{k}": p.grad.numpy() for k, p in own.items()}
            with torch.no_grad():
                model.set_active_adapters(None)
                data[f"{key}.plain"] = run(model, tokens, mask).numpy()
                model.set_active_adapters(case.name)
        data["cases"] = numpy.array(list(made))
        numpy.savez_compressed(folder / "golden.npz", **data)
        for file in folder.iterdir():
            file.chmod(0o644)
        print(f"{name}: {sum(f.stat().st_size for f in folder.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
