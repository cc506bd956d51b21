"""Make lora_*.npz and lora_*/: what PEFT's LoRA computes on the tiny models of make_llama.py.

    PYTHONPATH=benchmarks/peers PYTHONHASHSEED=0 python tests/golden/make_lora.py

Runs in the environment of benchmarks/peers/hf.txt, after make_llama.py; minift is not imported.
PEFT writes its sets in the order of their hashes, hence the fixed seed. Every adapter folder
holds the two files that PEFT wrote, B included at sizes far from zero (as after training).
float32: the library as it is, eager attention. Keys that end in `64`: as in make_llama.py.

In each npz:
    base (str)                     the model's folder beside this file
    tokens, mask, learn (B, T)     mask 1 = real, right-padded; learn 1 = this token is a target
    logits, logits64 (B, T, V)     with the adapter; zeros at padded positions
    plain, plain64                 with the adapter switched off
    merged, merged64               after merge_and_unload
    loss, loss64 ()                sum of the cross-entropies of all targets
    grad.<key>, grad64.<key>       gradient of each tensor, under its key in the adapter file
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy
import peft
import torch
from hf_exact import exact
from make_llama import chirp, ids, load_model, loss_sum, padded, place, write
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

HERE = Path(__file__).parent
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass
class Case:
    base: str
    targets: list[str]
    extra: dict = field(default_factory=dict)


CASES = {
    "all": Case("llama_gqa", ALL),
    "rs": Case("llama_biased", ALL, {"use_rslora": True}),
    "qv": Case("llama_gqa", ["q_proj", "v_proj"]),
    "pattern": Case(
        "llama_biased",
        ["q_proj", "o_proj", "down_proj"],
        {
            "rank_pattern": {"layers.1.self_attn.q_proj": 5, "down_proj": 2},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 4},
        },
    ),
}


def fill(model, size=1.0):
    """Every adapter tensor a chirp: A as large as PEFT's own start, B `size` times that."""
    weights = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for seed, (name, weight) in enumerate(weights):
            wave = chirp(weight.shape, seed + 100) / weight.shape[1] ** 0.5
            weight.copy_(wave * (size if "lora_B" in name else 1.0))


def save_adapter(model, folder):
    """The folder as PEFT writes it, less its model card."""
    model.save_pretrained(folder, save_embedding_layers=False)  # "auto" would ask the network
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "adapter_model.safetensors").chmod(0o644)


def load_adapter(base, folder):
    """PEFT on `base`, every tensor of the file in it: PEFT itself only warns of strangers."""
    model = PeftModel.from_pretrained(base, folder, is_trainable=True)
    there = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    assert there == set(load_file(folder / "adapter_model.safetensors")), folder
    return model


def trainables(model):
    """Adapter tensors under the keys that they have in the file."""
    return {
        name.replace(".default", ""): weight
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def compute(model, tokens, mask, learn):
    """-> {logits, plain, merged, loss, grad.*}; the model is merged at the end."""
    real = mask.bool()[:, :, None]

    def logits(model):
        out = model(
            input_ids=tokens, attention_mask=mask, position_ids=place(mask), use_cache=False
        )
        return torch.where(real, out.logits, 0)

    out = {"logits": logits(model)}
    out["loss"] = loss_sum(out["logits"], tokens, learn)
    weights = trainables(model)
    grads = torch.autograd.grad(out["loss"], list(weights.values()))
    out |= {f"grad.{name}": grad for name, grad in zip(weights, grads, strict=True)}
    with torch.no_grad():
        with model.disable_adapter():
            out["plain"] = logits(model)
        out["merged"] = logits(model.merge_and_unload())
    torch.testing.assert_close(out["merged"], out["logits"], rtol=1e-3, atol=1e-4)
    assert (out["plain"] - out["logits"]).abs().max() > 0.1, "the adapter does nothing"
    return out


def main():
    for name, case in CASES.items():
        folder = HERE / f"lora_{name}"
        base = load_model(HERE / case.base)
        base.config._name_or_path = base.name_or_path = case.base  # no path of this machine
        config = LoraConfig(
            r=3, lora_alpha=6, target_modules=case.targets, task_type="CAUSAL_LM", **case.extra
        )
        model = get_peft_model(base, config).eval()
        fill(model)
        save_adapter(model, folder)

        vocab = base.config.vocab_size
        tokens, mask = ids(vocab, 3, 9, 11), padded(3, 9, (9, 6, 2), "right")
        learn = (mask * (place(mask) > 0) * (tokens % 4 > 0)).long()
        out = {"base": numpy.array(case.base), "tokens": tokens, "mask": mask, "learn": learn}
        single = load_adapter(load_model(HERE / case.base), folder).eval()
        double = load_adapter(load_model(HERE / case.base), folder).eval()
        exact(double)
        out |= compute(single, tokens, mask, learn)
        for key, value in compute(double, tokens, mask, learn).items():
            assert value.dtype == torch.float64, key
            kind, _, rest = key.partition(".")
            out[f"{kind}64.{rest}" if rest else f"{kind}64"] = value
        torch.testing.assert_close(out["logits"].double(), out["logits64"], rtol=1e-4, atol=2e-4)
        write(HERE / f"lora_{name}.npz", out, peft=peft.__version__)


if __name__ == "__main__":
    main()
