"""Make llama_*.npz and llama_*/: tiny Llama checkpoints and what transformers computes with them.

    PYTHONPATH=benchmarks/peers python tests/golden/make_llama.py

Runs in the environment of benchmarks/peers/hf.txt; minift is not imported. The weights are a
formula, not random numbers, and so are ours to publish and the same with every torch.

float32: eager attention, the library as it is. Keys that end in `64`: the same model in float64,
for which the library's float32 casts in RMSNorm and the rotary angles are replaced and attention is
`sdpa` (benchmarks/peers/hf_exact.py).

In each npz, for every case C of `cases`:
    C.tokens, C.mask, C.positions (B, T)   mask 1 = real; positions = cumsum(mask) - 1, at least 0
    C.hidden (layers + 2, B, T, D)         embedding, after each block, after the final norm
    C.logits, C.logits64 (B, T, V)
and for the cases of `loss_cases`:
    C.learn (B, T)                         1 = this token is a target, predicted one place earlier
    C.loss, C.loss64 ()                    sum of the cross-entropies of all targets
    C.grad.<Hugging Face name>, C.grad64.* their gradients
Hidden states and logits of padded positions mean nothing and are stored as zeros.
"""

import json
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
import transformers
from hf_exact import exact
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
VERSIONS = {"transformers": transformers.__version__, "torch": torch.__version__}
SHAPES = {
    "gqa": {
        "vocab_size": 61,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 40,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
    },
    # theta 500 and heads of 12: of the six wavelengths one is kept, one blended, four slowed.
    "biased": {
        "vocab_size": 50,
        "hidden_size": 21,  # no multiple of head_dim * heads, and odd
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 12,
        "intermediate_size": 28,
        "max_position_embeddings": 512,
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
}


def chirp(shape, seed):
    """Numbers in -1..1 by formula: sin of a quadratic, so that no matrix is of low rank."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + 1
    return torch.sin(0.0137 * i * i + 0.7 * i + seed).reshape(shape)


def build(gain=1.0, **shape):
    """A Llama whose every parameter is a chirp: norms around 1, matrices `gain` times wild."""
    config = LlamaConfig(bos_token_id=None, eos_token_id=None, rms_norm_eps=1e-5, **shape)
    config.dtype = "float32"
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for seed, (name, weight) in enumerate(model.named_parameters()):
            wave = chirp(weight.shape, seed)
            if name.endswith("norm.weight"):
                wave = 1 + 0.4 * wave
            elif name.endswith(".bias"):
                wave = 0.5 * wave
            elif "embed_tokens" in name:
                wave = gain * wave
            else:
                wave = gain * wave * 2 / weight.shape[1] ** 0.5
            weight.copy_(wave)
    return model


def save_model(model, folder):
    model.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    (folder / "generation_config.json").unlink(missing_ok=True)


def load_model(folder, attention="eager"):
    return LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    ).eval()


def ids(vocab, B, T, seed):
    """Token ids (B, T) by formula, neighbours unlike each other."""
    i = torch.arange(B * T, dtype=torch.long).reshape(B, T)
    return (i * i * 7 + i * 29 + seed * 13) % vocab


def padded(B, T, lengths, side):
    column = torch.arange(T).expand(B, T)
    length = torch.tensor(lengths)[:, None]
    return (column < length if side == "right" else column >= T - length).long()


def place(mask):
    return (mask.cumsum(1) - 1).clamp(min=0)


def cases(name, vocab):
    """name -> (tokens, mask, positions)."""
    made = {}
    for case, B, T, lengths, side in (
        ("plain", 2, 11, None, ""),
        ("one", 3, 1, None, ""),
        ("right", 3, 9, (9, 4, 1), "right"),
        ("left", 3, 9, (3, 9, 6), "left"),
    ):
        mask = torch.ones(B, T, dtype=torch.long) if not side else padded(B, T, lengths, side)
        made[case] = (ids(vocab, B, T, len(made)), mask, place(mask))
    T = 51 if name == "biased" else 33  # further than the 32 positions before the scaling, and odd
    long = torch.ones(1, T, dtype=torch.long)
    made["long"] = (ids(vocab, 1, T, 5), long, place(long))
    far = torch.ones(2, 5, dtype=torch.long)  # with gaps: one shift of a whole row changes nothing
    step = torch.tensor([[18], [3]]) if name == "biased" else torch.tensor([[7], [3]])
    made["far"] = (ids(vocab, 2, 5, 6), far, step * place(far) ** 2 + torch.tensor([[0], [77]]))
    return made


def loss_sum(logits, tokens, learn):
    """Sum over every token with learn = 1 of -log p(token), by the logits one place earlier."""
    rows = learn[:, 1:].bool()
    return F.cross_entropy(logits[:, :-1][rows], tokens[:, 1:][rows], reduction="sum")


def run(model, tokens, mask, positions):
    """-> hidden (layers + 2, B, T, D), logits (B, T, V), with the graph that made the logits."""
    seen = []
    hooks = [
        module.register_forward_hook(lambda module, args, out: seen.append(out))
        for module in (model.model.embed_tokens, *model.model.layers, model.model.norm)
    ]
    logits = model(
        input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False
    ).logits
    for hook in hooks:
        hook.remove()
    real = mask.bool()[:, :, None]
    return torch.where(real, torch.stack(seen), 0), torch.where(real, logits, 0)


def gradients(model, names, loss):
    parameters = dict(model.named_parameters())
    return dict(zip(names, torch.autograd.grad(loss, [parameters[n] for n in names]), strict=True))


def write(path, arrays, **extra):
    """A golden of at most 200 KB, with the versions that made it."""
    arrays = {k: v.detach().numpy() if torch.is_tensor(v) else v for k, v in arrays.items()}
    arrays["versions"] = numpy.array(json.dumps(VERSIONS | extra))
    numpy.savez_compressed(path, **arrays)
    size = path.stat().st_size
    assert size <= 200_000, (path, size)
    print(f"{path.name}: {size:,} bytes, {len(arrays)} arrays")


def main():
    for name, shape in SHAPES.items():
        folder = HERE / f"llama_{name}"
        save_model(build(**shape), folder)
        assert (folder / "model.safetensors").stat().st_size <= 200_000
        model, precise = load_model(folder), exact(load_model(folder))
        made = cases(name, shape["vocab_size"])
        lossy = ["plain", "left", "right"]
        names = [
            "model.embed_tokens.weight",
            "model.layers.0.self_attn.q_proj.weight",
            "model.layers.1.input_layernorm.weight",
        ]
        out = {"cases": numpy.array(list(made)), "loss_cases": numpy.array(lossy)}
        for case, (tokens, mask, positions) in made.items():
            hidden, logits = run(model, tokens, mask, positions)
            hidden64, logits64 = run(precise, tokens, mask, positions)
            torch.testing.assert_close(logits.double(), logits64, rtol=1e-4, atol=2e-4)
            torch.testing.assert_close(hidden.double(), hidden64, rtol=1e-4, atol=2e-4)
            out |= {f"{case}.tokens": tokens, f"{case}.mask": mask, f"{case}.positions": positions}
            out |= {f"{case}.hidden": hidden, f"{case}.logits": logits}
            out |= {f"{case}.logits64": logits64}
            if case in lossy:
                # the first real token of a row has nothing before it to predict it
                learn = ((positions > 0) & (mask == 1) & (tokens % 3 > 0)).long()
                loss, loss64 = (loss_sum(it, tokens, learn) for it in (logits, logits64))
                out |= {f"{case}.learn": learn, f"{case}.loss": loss, f"{case}.loss64": loss64}
                for n, g in gradients(model, names, loss).items():
                    out[f"{case}.grad.{n}"] = g
                for n, g in gradients(precise, names, loss64).items():
                    out[f"{case}.grad64.{n}"] = g
        write(HERE / f"llama_{name}.npz", out)


if __name__ == "__main__":
    main()
