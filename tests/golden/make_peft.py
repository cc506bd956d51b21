"""Make peft/: what PEFT's methods compute on the tiny models beside this file.

    PYTHONPATH=benchmarks/peers PYTHONHASHSEED=0 python tests/golden/make_peft.py [NAME ...]

Runs in the environment of benchmarks/peers/hf.txt, after make_llama.py and make_families.py; minift
is not imported. Each folder peft/METHOD-BASE holds the two files that PEFT wrote, every parameter
far from its start (as after training), and golden.npz, all of it computed in float64 by PEFT's own
model, loaded again from the folder, on a base without float32 casts (hf_exact.py):
    base (str)                          the base's folder beside this file
    cases                               the batches: plain, one (T = 1), right and left (padding)
    C.tokens, C.mask (B, T)             mask 1 = real; C.types (B, T) where token types are given
    C.out                               logits (B, T, V), scores (B, C), or last hidden states
    grad.<key>                          of the sum over all batches of out * chirp at real
                                        positions, under the key in the adapter file; soft prompts'
                                        encoders as prompt_encoder.<PEFT's name>
    prompt_encoder.<PEFT's name>        the encoder itself, which is not in PEFT's file
Positions count the real tokens of a row, virtual tokens included, as PEFT's generate() has them
(its forward pass ignores padding on the left). Outputs of padded and virtual positions are left
out.
"""

import sys
from pathlib import Path
from types import MethodType

import numpy
import peft
import torch
import transformers as hf
from hf_exact import exact_frequencies, norm, rotary
from make_llama import chirp, ids, padded, place, write

HERE = Path(__file__).parent
BASES = {
    "llama": "llama_gqa",
    "gpt2": "families/gpt2",
    "qwen2": "families/qwen2",
    "bert": "families/bert",
    "bert_body": "families/bert_body",
    "bert_labels": "families/bert_labels",
}
TASKS = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "qwen2": "CAUSAL_LM", "bert": None}
TASKS |= {"bert_body": "FEATURE_EXTRACTION", "bert_labels": "SEQ_CLS"}
VIRTUAL = 3
DENSE = ["query", "value", "attention.output.dense", "intermediate.dense"]
LORA = {
    "llama": {
        "target_modules": ["q_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 4},
        "alpha_pattern": {"down_proj": 9},
    },
    "gpt2": {
        "target_modules": ["c_attn", "mlp.c_proj", "c_fc"],
        "rank_pattern": {"h.1.attn.c_attn": 2},
        "alpha_pattern": {"c_fc": 1.5},
        "fan_in_fan_out": True,
    },
    "qwen2": {"target_modules": "all-linear", "use_rslora": True},
    "bert": {"target_modules": DENSE, "use_rslora": True, "init_lora_weights": "gaussian"},
    "bert_body": {"target_modules": ["key", "output.dense"], "rank_pattern": {"0.output.dense": 1}},
    "bert_labels": {"target_modules": DENSE, "alpha_pattern": {"0.attention.self.query": 2}},
}
WHOLE = {
    "llama": {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
    "gpt2": {"target_modules": ["wte"]},
    "qwen2": {"target_modules": ["embed_tokens"], "use_rslora": True},
    "bert": {"target_modules": ["word_embeddings", "query"]},
}
DORA = {
    "llama": {"target_modules": ["q_proj", "k_proj", "up_proj"]},
    "gpt2": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    "qwen2": {"target_modules": ["v_proj", "o_proj"], "rank_pattern": {"o_proj": 1}},
    "bert_labels": {"target_modules": ["key", "output.dense"]},
}
TOKENS = {  # whole rows of the token table; the dictionary where the head is a matrix of its own
    "llama": {
        "target_modules": ["v_proj"],
        "trainable_token_indices": {"embed_tokens": [16, 36], "lm_head": [16, 36]},
    },
    "gpt2": {"target_modules": ["c_attn"], "fan_in_fan_out": True, "trainable_token_indices": [11]},
    "qwen2": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [3, 17, 8], "lm_head": [3, 17, 8]},
    },
    # Not "bert": PEFT leaves out the bias of a head that is tied to the table.
    "bert_labels": {"target_modules": ["query"], "trainable_token_indices": [6, 23]},
}
SOFT = ("llama", "gpt2", "qwen2", "bert_body", "bert_labels")


def settings():
    """(method, base) -> PEFT's configuration."""
    found = {}
    for base, extra in LORA.items():
        found["lora", base] = peft.LoraConfig(r=3, lora_alpha=6, **extra)
    for base, extra in WHOLE.items():
        found["lora_whole", base] = peft.LoraConfig(r=2, lora_alpha=3, **extra)
    for base, extra in TOKENS.items():
        found["lora_tokens", base] = peft.LoraConfig(r=2, lora_alpha=3, **extra)
    for base, extra in DORA.items():
        found["dora", base] = peft.LoraConfig(r=2, lora_alpha=5, use_dora=True, **extra)
    for base in BASES:
        turned = {"fan_in_fan_out": True} if base == "gpt2" else {}
        found["ia3", base] = peft.IA3Config(**turned)
    for base in SOFT:
        n = {"num_virtual_tokens": VIRTUAL}
        found["prompt", base] = peft.PromptTuningConfig(**n)
        found["ptuning", base] = peft.PromptEncoderConfig(**n, encoder_hidden_size=6)
        found["ptuning_lstm", base] = peft.PromptEncoderConfig(
            **n, encoder_hidden_size=4, encoder_reparameterization_type="LSTM"
        )
        found["prefix", base] = peft.PrefixTuningConfig(**n)
        found["prefix_mlp", base] = peft.PrefixTuningConfig(
            **n, prefix_projection=True, encoder_hidden_size=5
        )
    for (_, base), config in found.items():
        config.task_type = TASKS[base]
    return found


def load_base(name):
    folder = HERE / BASES[name]
    kind = getattr(hf, hf.AutoConfig.from_pretrained(folder).architectures[0])
    model = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    model.config._name_or_path = model.name_or_path = BASES[name]  # no path of this machine
    return model


def exact(model):
    """hf_exact.exact for any family."""
    model.double()
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = MethodType(norm, module)
        if kind.endswith("RotaryEmbedding"):
            module.inv_freq = exact_frequencies(module)
            module.forward = MethodType(rotary, module)
    return model


def count_real(module, args, kwargs):
    """Positions by the mask, which has columns of the prefix in front."""
    given = kwargs.get("inputs_embeds")
    if given is None:
        given = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
    positions = place(kwargs["attention_mask"].long())[:, -given.shape[1] :]
    return args, kwargs | {"position_ids": positions}


def move(model):
    """Every trainable far from where it started, in float32 numbers."""
    with torch.no_grad():
        for seed, weight in enumerate(p for p in model.parameters() if p.requires_grad):
            weight.add_(0.2 * chirp(weight.shape, seed + 100).to(weight))


def short(name):
    return name.replace(".default", "").replace(".modules_to_save", "")


def batches(base, soft):
    vocab, lengths = hf.AutoConfig.from_pretrained(HERE / BASES[base]).vocab_size, [7, 4, 1]
    found = {
        "plain": (ids(vocab, 2, 6, 1), torch.ones(2, 6, dtype=torch.long)),
        "one": (ids(vocab, 3, 1, 2), torch.ones(3, 1, dtype=torch.long)),
        "right": (ids(vocab, 3, 7, 3), padded(3, 7, lengths, "right")),
        "left": (ids(vocab, 3, 7, 4), padded(3, 7, lengths, "left")),
    }
    if base == "bert_labels":
        del found["left"]  # transformers reads the first position, padded or not
    typed = base.startswith("bert") and not (soft and base == "bert_body")  # PEFT drops them there
    for name, (tokens, mask) in found.items():
        given = {"input_ids": tokens, "attention_mask": mask}
        if typed:
            given["token_type_ids"] = (torch.arange(tokens.shape[1]) // 3 + tokens * 0) % 2
        yield name, given


def run(model, config, base):
    """-> outputs and gradients of all batches."""
    out, total = {}, 0.0
    soft = config.is_prompt_learning
    model.get_base_model().base_model.register_forward_pre_hook(count_real, with_kwargs=True)
    for name, given in batches(base, soft):
        cache = {"use_cache": False} if not soft and not base.startswith("bert") else {}
        found = model(**given, **cache)
        wave = found.logits if "logits" in found else found.last_hidden_state
        mask = given["attention_mask"]
        if wave.dim() == 3:
            wave = torch.where(mask.bool()[:, :, None], wave[:, -mask.shape[1] :], 0)
        assert wave.dtype == torch.float64
        total = total + (wave * chirp(wave.shape, 99)).sum()
        out |= {f"{name}.tokens": given["input_ids"], f"{name}.mask": mask, f"{name}.out": wave}
        if "token_type_ids" in given:
            out[f"{name}.types"] = given["token_type_ids"]
        if not soft:
            with torch.no_grad(), model.disable_adapter():
                plain = model(**given)
            plain = plain.logits if "logits" in plain else plain.last_hidden_state
            assert (plain - found[0]).abs().max() > 0.01, "the adapter does nothing"
    weights = {short(n): p for n, p in model.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(total, list(weights.values()))
    for name, grad in zip(weights, grads, strict=True):
        assert grad.abs().max() > 0, name
        out[f"grad.{name}"] = grad
    return out


def main():
    hf.logging.set_verbosity_error()
    for (method, base), config in settings().items():
        name = f"{method}-{base}"
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        folder = HERE / "peft" / name
        torch.manual_seed(0)
        single = peft.get_peft_model(load_base(base), config).eval()
        move(single)
        # The embeddings' own weights too where PEFT would add them; "auto" would ask the network.
        single.save_pretrained(folder, save_embedding_layers=method == "lora_whole")
        (folder / "README.md").unlink(missing_ok=True)
        (folder / "adapter_model.safetensors").chmod(0o644)

        data = {"base": numpy.array(BASES[base])}
        loaded = peft.PeftModel.from_pretrained(
            exact(load_base(base)), folder, is_trainable=not config.is_prompt_learning
        )
        double = loaded.eval().double()
        if config.is_prompt_learning:  # PEFT does not train on from a file of these
            double = peft.get_peft_model(exact(load_base(base)), config).eval().double()
            double.load_state_dict(single.state_dict())
            _, given = next(batches(base, soft=True))
            torch.testing.assert_close(loaded(**given)[0], double(**given)[0], rtol=0, atol=1e-4)
            for key, tensor in single.prompt_encoder.state_dict().items():
                data["prompt_encoder." + key.removeprefix("default.")] = tensor
        for key, tensor in single.state_dict().items():
            assert torch.equal(double.state_dict()[key].float(), tensor), key
        data["cases"] = numpy.array([case for case, _ in batches(base, False)])
        write(folder / "golden.npz", data | run(double, config, base), peft=peft.__version__)


if __name__ == "__main__":
    main()
