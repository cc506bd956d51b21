"""Make families/: tiny checkpoints of every family, and what transformers computes with them.

    PYTHONPATH=benchmarks/peers python tests/golden/make_families.py [NAME ...]

Runs in the environment of benchmarks/peers/hf.txt; minift is not imported. Weights are a formula
(make_llama.chirp), float32, eager attention. Each folder families/NAME has config.json and
model.safetensors as transformers saves them, and golden.npz with, for each case C of `cases`:
    C.tokens, C.mask (B, T)     mask 1 = real; C.types (B, T) where the family has token types
    C.hidden                    (layers + 1, B, T, D): what enters the first block, what leaves each
                                but the last, and the last hidden states (after the final norm)
    C.out                       logits (B, T, V), labels' scores (B, C), or nothing without a head
    C.grad.<Hugging Face name>  of sum(out * chirp), or of the last hidden states without a head
Values at padded positions mean nothing and are stored as zeros.
"""

import json
import sys
from pathlib import Path

import numpy
import torch
import transformers as hf
from make_llama import chirp, ids, padded

HERE = Path(__file__).parent / "families"
ROPE = {"rope_theta": 10000.0}
SMALL = {
    "vocab_size": 53,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
ODD = SMALL | {  # one kv head, a width that the heads do not divide, three layers
    "vocab_size": 47,
    "hidden_size": 21,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "intermediate_size": 29,
    "head_dim": 10,
}
ENCODER = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
ODD_ENCODER = ENCODER | {
    "vocab_size": 47,
    "hidden_size": 21,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 31,
}
TIED = {"tie_word_embeddings": True}
GPT2 = {"vocab_size": 53, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64}
DISTIL = {"vocab_size": 53, "dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}
DISTIL |= {"max_position_embeddings": 64}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 11, "sliding_window": 5}
THREE = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "pad_token_id": 0}


def rope(kind, **more):
    return {"rope_parameters": {"rope_type": kind, **ROPE, **more}}


MODELS = {
    "llama_linear": ("LlamaForCausalLM", SMALL | rope("linear", factor=3.0)),
    "llama_dynamic": (
        "LlamaForCausalLM",
        SMALL | rope("dynamic", factor=2.0) | {"max_position_embeddings": 16},
    ),
    "llama_yarn": (
        "LlamaForCausalLM",
        SMALL | rope("yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    "llama_yarn_beta": (
        "LlamaForCausalLM",
        ODD
        | TIED
        | rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=32,
            beta_fast=4.0,
            beta_slow=0.5,
            attention_factor=1.25,
        ),
    ),
    "llama_labels": ("LlamaForSequenceClassification", SMALL | THREE),
    "mistral": ("MistralForCausalLM", SMALL | {"sliding_window": 5}),
    "mistral_odd": ("MistralForCausalLM", ODD | TIED | {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", SMALL | TIED),
    "qwen2_window": (
        "Qwen2ForCausalLM",
        SMALL
        | {
            "num_hidden_layers": 3,
            "hidden_size": 30,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("Qwen3ForCausalLM", SMALL | {"head_dim": 8}),
    "qwen3_odd": ("Qwen3ForCausalLM", ODD | TIED | {"attention_bias": True}),
    "gemma": ("GemmaForCausalLM", SMALL | {"head_dim": 8}),
    "gemma_odd": ("GemmaForCausalLM", ODD | {"tie_word_embeddings": False}),
    "gemma2": ("Gemma2ForCausalLM", SMALL | GEMMA),
    "gemma2_odd": (
        "Gemma2ForCausalLM",
        ODD
        | {
            "query_pre_attn_scalar": 7,
            "sliding_window": 3,
            "final_logit_softcapping": 4.0,
            "attn_logit_softcapping": 2.0,
        },
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        SMALL | GEMMA | {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gemma3_scaled": (
        "Gemma3ForCausalLM",
        ODD
        | {
            "query_pre_attn_scalar": 13,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
            },
        },
    ),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2_odd": (
        "GPT2LMHeadModel",
        GPT2
        | {"n_embd": 21, "n_head": 3, "n_layer": 3, "n_inner": 31, "tie_word_embeddings": False},
    ),
    "gpt2_body": ("GPT2Model", GPT2),
    "gpt2_labels": ("GPT2ForSequenceClassification", GPT2 | THREE),
    "gpt_neox": ("GPTNeoXForCausalLM", ENCODER | {"hidden_size": 32}),
    "gpt_neox_serial": (
        "GPTNeoXForCausalLM",
        ODD_ENCODER
        | {
            "use_parallel_residual": False,
            "attention_bias": False,
            "hidden_size": 30,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.4,
            },
        },
    ),
    "bert": ("BertForMaskedLM", ENCODER),
    "bert_body": ("BertModel", ODD_ENCODER | {"type_vocab_size": 3, "hidden_act": "relu"}),
    "bert_labels": ("BertForSequenceClassification", ENCODER | THREE),
    "roberta": ("RobertaForMaskedLM", ENCODER | {"type_vocab_size": 1}),
    "roberta_body": ("RobertaModel", ODD_ENCODER | {"type_vocab_size": 1, "pad_token_id": 3}),
    "roberta_labels": (
        "RobertaForSequenceClassification",
        ENCODER | THREE | {"type_vocab_size": 1, "pad_token_id": 1},
    ),
    "distilbert": ("DistilBertForMaskedLM", DISTIL),
    "distilbert_odd": (
        "DistilBertForMaskedLM",
        DISTIL | {"dim": 21, "n_heads": 3, "n_layers": 3, "hidden_dim": 31},
    ),
    "distilbert_labels": ("DistilBertForSequenceClassification", DISTIL | THREE),
}


def build(cls, config):
    kind = getattr(hf, cls)
    config = kind.config_class(bos_token_id=None, eos_token_id=None, **config)
    config.dtype = "float32"
    config._attn_implementation = "eager"
    model = kind(config).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None  # its row would get no gradient, wherever it stands
    with torch.no_grad():
        for seed, (name, weight) in enumerate(model.named_parameters()):
            wave = chirp(weight.shape, seed)
            if (weight.dim() == 1 and "norm" in name.lower()) or ".ln_" in name:
                wave = 0.4 * wave + (0 if name.endswith("bias") or "Gemma" in cls else 1)
            elif weight.dim() == 1:
                wave = 0.5 * wave
            elif "embed" not in name and "wte" not in name and "wpe" not in name:
                wave = wave * 2 / weight.shape[1] ** 0.5
            weight.copy_(wave)
    return model


def cases(model, cls):
    vocab, lengths = model.config.vocab_size, [9, 5, 1]
    found = {
        "plain": (ids(vocab, 2, 11, 1), torch.ones(2, 11, dtype=torch.long)),
        "one": (ids(vocab, 3, 1, 2), torch.ones(3, 1, dtype=torch.long)),
        "right": (ids(vocab, 3, 9, 3), padded(3, 9, lengths, "right")),
        "left": (ids(vocab, 3, 9, 4), padded(3, 9, lengths, "left")),
        "long": (ids(vocab, 1, 40, 5), torch.ones(1, 40, dtype=torch.long)),
    }
    if "SequenceClassification" in cls and ("Bert" in cls or "Roberta" in cls):
        del found["left"]  # transformers reads the first position, padded or not
    if "SequenceClassification" in cls:
        # transformers finds the last real token by its id: 0 is padding, and only that.
        found = {
            name: (torch.where(mask.bool(), tokens.clamp(min=1), 0), mask)
            for name, (tokens, mask) in found.items()
        }
    return found


def run(model, cls, tokens, mask):
    given = {"attention_mask": mask, "output_hidden_states": True}
    decoder = not any(word in cls for word in ("Bert", "Roberta"))
    offset = model.config.pad_token_id + 1 if cls.startswith("Roberta") else 0
    given["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + offset
    out = {}
    if decoder:
        given["use_cache"] = False
    elif getattr(model.config, "type_vocab_size", 1) > 1:
        given["token_type_ids"] = (torch.arange(tokens.shape[1]) * 2 // 9 + tokens * 0) % 2
        out["types"] = given["token_type_ids"]
    result = model(input_ids=tokens, **given)
    real = mask.bool()
    hidden = torch.stack(result.hidden_states) * real[None, :, :, None]
    logits = getattr(result, "logits", None)
    wave = result.hidden_states[-1] if logits is None else logits
    if wave.dim() == 3:
        wave = wave * real[:, :, None]
    if logits is not None:
        out["out"] = wave.detach()
    model.zero_grad()
    (wave * chirp(wave.shape, 99)).sum().backward()
    out |= {"tokens": tokens, "mask": mask, "hidden": hidden.detach()}
    return out


def main():
    for name in sys.argv[1:] or MODELS:
        cls, config = MODELS[name]
        model = build(cls, config)
        folder = HERE / name
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        (folder / "model.safetensors").chmod(0o644)
        (folder / "generation_config.json").unlink(missing_ok=True)
        versions = {"transformers": hf.__version__, "torch": torch.__version__}
        data = {"versions": numpy.array(json.dumps(versions))}
        for case, (tokens, mask) in cases(model, cls).items():
            for key, value in run(model, cls, tokens, mask).items():
                data[f"{case}.{key}"] = value.numpy()
            if case == "right":
                weights = dict(model.named_parameters())
                word = next(n for n in weights if "word_emb" in n or "embed_" in n or "wte" in n)
                query = next(
                    n
                    for n in weights
                    if ".0." in n
                    and any(k in n for k in ("q_proj.w", "c_attn.w", "query", "q_lin.w"))
                )
                for parameter in (word, query):
                    data[f"right.grad.{parameter}"] = weights[parameter].grad.numpy()
        data["cases"] = numpy.array(list(cases(model, cls)))
        numpy.savez_compressed(folder / "golden.npz", **data)
        size = sum(f.stat().st_size for f in folder.iterdir())
        print(f"{name}: {size:,} bytes")


if __name__ == "__main__":
    main()
