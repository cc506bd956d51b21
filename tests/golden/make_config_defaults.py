"""Make config_defaults.json: what transformers reads from config.json files that leave keys out.

    PYTHONPATH=benchmarks/peers python tests/golden/make_config_defaults.py

Runs in the environment of benchmarks/peers/hf.txt; minift is not imported. Each case is a
config.json (`config`) and what the family's class makes of it (`expected`): sizes, the activation's
values at POINTS, which layers have a window, the rotary frequencies and what cos and sin are
multiplied by. Keys of `expected` are the fields of minift's ModelConfig, but for the last three.
"""

import json
from pathlib import Path

import torch
import transformers as hf
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

POINTS = [-3.0, -1.0, -0.1, 0.5, 2.0]
SMALL = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 3}
GROUPED = SMALL | {"num_key_value_heads": 2}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
LONG = {"rope_type": "longrope", "short_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
LONG |= {"long_factor": LONG["short_factor"]}
CASES = {
    "llama": [
        {},
        SMALL,
        SMALL | {"num_key_value_heads": None, "head_dim": None, "rope_scaling": None},
        SMALL | {"num_key_value_heads": 2, "head_dim": 8, "hidden_act": "swish"},
        SMALL | {"rope_theta": 500000.0, "rope_scaling": LLAMA3 | {"type": "default"}},
        SMALL | {"rope_scaling": {k: v for k, v in LLAMA3.items() if "original" not in k}},
        SMALL | {"rope_scaling": {"type": "linear", "factor": 2.0}},
        SMALL | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        SMALL | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7000.0}},
        SMALL
        | {
            "rope_parameters": {"rope_theta": 7000.0},
            "rope_scaling": {"type": "linear", "factor": 3.0},
        },
        SMALL | {"rope_scaling": LONG | {"factor": 4.0}, "max_position_embeddings": 4096},
        SMALL
        | {"rope_scaling": LONG | {"original_max_position_embeddings": 1024}}
        | {"max_position_embeddings": 8192},
        SMALL | {"rope_scaling": LONG, "original_max_position_embeddings": 512},
        SMALL | {"rope_scaling": LONG | {"attention_factor": 1.5, "factor": 2.0}},
        SMALL | {"pretraining_tp": 2, "tie_word_embeddings": True},
    ],
    "mistral": [
        {},
        GROUPED,
        GROUPED | {"sliding_window": None, "head_dim": None},
        GROUPED | {"sliding_window": 7},
    ],
    "qwen2": [
        {},
        GROUPED,
        GROUPED | {"rope_scaling": {"type": "yarn"} | YARN},
        GROUPED | {"rope_scaling": {"rope_type": "yarn", "beta_fast": 16, "beta_slow": 2} | YARN},
        GROUPED | {"use_sliding_window": True, "max_window_layers": 1},
        GROUPED | {"use_sliding_window": True, "sliding_window": 9, "num_hidden_layers": 30},
        GROUPED | {"use_sliding_window": False, "sliding_window": 9},
    ],
    "qwen3": [
        {},
        GROUPED,
        SMALL | {"num_key_value_heads": None, "use_sliding_window": True, "max_window_layers": 2},
    ],
    "gemma": [
        {},
        GROUPED,
        GROUPED | {"hidden_act": "gelu"},
        GROUPED | {"hidden_act": "gelu", "hidden_activation": None},
        GROUPED | {"tie_word_embeddings": False, "head_dim": 16, "query_pre_attn_scalar": 9},
    ],
    "gemma2": [
        {},
        GROUPED,
        GROUPED
        | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window": None},
        GROUPED | {"hidden_activation": "gelu", "hidden_act": "relu", "query_pre_attn_scalar": 144},
    ],
    "gemma3_text": [
        {},
        GROUPED | {"num_hidden_layers": 7},
        GROUPED | {"num_hidden_layers": 7, "sliding_window_pattern": 3, "sliding_window": 5},
        GROUPED | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 5000.0},
        GROUPED | {"rope_local_base_freq": 777.0},
    ],
    "gpt2": [
        {},
        {"n_embd": 48, "n_head": 4, "n_layer": 3, "n_inner": None},
        {"n_embd": 48, "n_head": 4, "n_inner": 50, "activation_function": "gelu_fast"},
        {"n_embd": 48, "n_head": 4, "activation_function": "relu", "tie_word_embeddings": False},
    ],
    "gpt_neox": [
        {},
        SMALL | {"hidden_size": 64},
        SMALL
        | {"hidden_size": 64, "rotary_pct": 1.0, "rotary_emb_base": 500, "hidden_act": "gelu_fast"},
        SMALL | {"hidden_size": 64, "use_parallel_residual": False, "attention_bias": False},
        SMALL | {"hidden_size": 64, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ],
    "bert": [
        {},
        SMALL | {"type_vocab_size": 5},
        SMALL | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    ],
    "roberta": [
        {},
        SMALL | {"pad_token_id": 3},
        SMALL | {"max_position_embeddings": 514, "type_vocab_size": 1},
    ],
    "distilbert": [{}, {"dim": 48, "n_heads": 4, "n_layers": 3, "activation": "gelu_python"}],
}


def rope(config, kind):
    """(frequencies, what cos and sin are multiplied by) of one kind of layer."""
    parameters = config.rope_parameters
    parameters = parameters[kind] if kind else parameters
    name = parameters["rope_type"]
    if name != "default":
        freq, gain = ROPE_INIT_FUNCTIONS[name](config, "cpu", layer_type=kind)
        return freq.tolist(), gain
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    dims = int(width * parameters.get("partial_rotary_factor", 1.0))
    i = torch.arange(0, dims, 2, dtype=torch.float64)
    return (parameters["rope_theta"] ** (-i / dims)).tolist(), 1.0


def expected(c):
    kind, heads = c.model_type, c.num_attention_heads
    act = (
        getattr(c, "hidden_act", None)
        if kind != "gemma3_text" and kind != "gemma2"
        else c.hidden_activation
    )
    act = {
        "gpt2": getattr(c, "activation_function", None),
        "distilbert": getattr(c, "activation", None),
    }.get(kind, act)
    ff = getattr(c, "intermediate_size", None)
    ff = {"gpt2": c.n_inner or 4 * c.n_embd} if kind == "gpt2" else ff
    ff = ff["gpt2"] if isinstance(ff, dict) else c.hidden_dim if kind == "distilbert" else ff
    found = {
        "vocab": c.vocab_size,
        "dim": c.hidden_size,
        "layers": c.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(c, "num_key_value_heads", heads),
        "head_dim": getattr(c, "head_dim", None) or c.hidden_size // heads,
        "ff": ff,
        "tied": c.tie_word_embeddings,
        "act": ACT2FN[act](torch.tensor(POINTS, dtype=torch.float64)).tolist(),
    }
    for ours, theirs in {
        "norm_eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")
    }.items():
        found[ours] = next((getattr(c, name) for name in theirs if hasattr(c, name)), 1e-12)
    if kind in ("bert", "roberta"):
        found["token_types"] = c.type_vocab_size
    found["context"] = c.max_position_embeddings - (c.pad_token_id + 1 if kind == "roberta" else 0)
    if kind.startswith("gemma"):
        scalar = c.head_dim if kind == "gemma" else c.query_pre_attn_scalar
        found["attention_scale"] = scalar**-0.5
        found["attention_softcap"] = getattr(c, "attn_logit_softcapping", None)
        found["logit_softcap"] = getattr(c, "final_logit_softcapping", None)
    window = getattr(c, "sliding_window", None)
    kinds = getattr(c, "layer_types", None) or ["sliding_attention"] * c.num_hidden_layers
    local = [window is not None and kind == "sliding_attention" for kind in kinds]
    found["local"] = local if any(local) else []
    found["window"] = window
    if kind in ("bert", "roberta", "distilbert", "gpt2"):
        return found
    if kind == "gemma3_text":
        found["local_frequencies"], _ = rope(c, "sliding_attention")
    found["frequencies"], found["attention_factor"] = rope(
        c, "full_attention" if kind == "gemma3_text" else None
    )
    return found


def main():
    cases = []
    for kind, configs in CASES.items():
        for config in configs:
            given = json.loads(json.dumps(config))
            made = hf.AutoConfig.for_model(kind, **given)
            cases.append({"config": {"model_type": kind, **config}, "expected": expected(made)})
    path = Path(__file__).parent / "config_defaults.json"
    text = ",\n".join(json.dumps(case) for case in cases)
    path.write_text(
        f'{{"points": {POINTS}, "transformers": "{hf.__version__}", "cases": [\n{text}\n]}}\n'
    )
    print(f"{len(cases)} cases, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
