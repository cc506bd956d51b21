"""Make training.npz, training/ and training_adapter/: fifty LoRA steps by transformers + PEFT.

    PYTHONPATH=benchmarks/peers PYTHONHASHSEED=0 python tests/golden/make_training.py

Runs in the environment of benchmarks/peers/hf.txt; minift is not imported. A four-layer Llama and
the adapter it starts from (both float32 files, by formula), trained in float64 throughout: norms
and rotary angles too, see benchmarks/peers/hf_exact.py. Each step is one batch of right-padded
rows; its loss is the sum of the targets' cross-entropies over the number of targets. Gradients are
clipped to a global norm of 1, then torch's AdamW: betas (0.9, 0.999), eps 1e-8, no decay.

In the npz (S steps, B rows, T positions):
    tokens, mask, learn (S, B, T)   mask 1 = real; learn 1 = this token is a target
    lrs (S,)                        base_lr (k + 1) / warmup for k < warmup,
                                    then base_lr (S - k) / (S - warmup); scalars base_lr and warmup
    losses, grad_norms (S,)         before the update, and before clipping
    final.<key of the adapter file> the adapter after the last step, float64
"""

from pathlib import Path

import peft
import torch
from hf_exact import exact
from make_llama import build, load_model, loss_sum, padded, place, save_model, write
from make_lora import ALL, fill, load_adapter, save_adapter, trainables
from peft import LoraConfig, get_peft_model

HERE = Path(__file__).parent
STEPS, WARMUP, BASE_LR, CLIP = 50, 5, 1e-2, 1.0
V, B, T = 97, 3, 13
SHAPE = {
    "vocab_size": V,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
}


def batches():
    """-> tokens, mask, learn (S, B, T): each token follows from the last, so it can be learned."""
    tokens = torch.zeros(STEPS, B, T, dtype=torch.long)
    tokens[:, :, 0] = (torch.arange(STEPS * B).reshape(STEPS, B) * 17 + 5) % V
    for t in range(1, T):
        tokens[:, :, t] = (3 * tokens[:, :, t - 1] + 7) % V
    mask = torch.stack(
        [padded(B, T, (T - s % 4, 5 + s % 7, 3 + s % 2), "right") for s in range(STEPS)]
    )
    prompt = 1 + torch.arange(STEPS * B).reshape(STEPS, B, 1) % 3  # tokens that nobody learns
    return tokens * mask, mask, mask * (torch.arange(T) >= prompt)


def rate(k):
    if k < WARMUP:
        return BASE_LR * (k + 1) / WARMUP
    return BASE_LR * (STEPS - k) / (STEPS - WARMUP)


def main():
    save_model(build(gain=0.3, **SHAPE), HERE / "training")
    model = load_model(HERE / "training")
    model.config._name_or_path = model.name_or_path = "training"  # no path of this machine
    config = LoraConfig(r=4, lora_alpha=4, target_modules=ALL, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    fill(model, size=0.3)
    save_adapter(model, HERE / "training_adapter")

    model = load_adapter(load_model(HERE / "training"), HERE / "training_adapter").train()
    exact(model)
    weights = trainables(model)
    optimizer = torch.optim.AdamW(
        weights.values(), lr=BASE_LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    )
    tokens, mask, learn = batches()
    losses, norms = [], []
    for k in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate(k)
        logits = model(
            input_ids=tokens[k],
            attention_mask=mask[k],
            position_ids=place(mask[k]),
            use_cache=False,
        ).logits
        assert logits.dtype == torch.float64
        loss = loss_sum(logits, tokens[k], learn[k]) / learn[k].sum()
        optimizer.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(weights.values(), CLIP).item())
        optimizer.step()
        losses.append(loss.item())
    clipped = sum(norm > CLIP for norm in norms)
    print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}; {clipped} of {STEPS} steps clipped")
    assert 10 < clipped < 40, "both branches of the clipping should be seen"
    out = {
        "tokens": tokens,
        "mask": mask,
        "learn": learn,
        "lrs": torch.tensor([rate(k) for k in range(STEPS)], dtype=torch.float64),
        "base_lr": torch.tensor(BASE_LR, dtype=torch.float64),
        "warmup": torch.tensor(WARMUP),
        "losses": torch.tensor(losses, dtype=torch.float64),
        "grad_norms": torch.tensor(norms, dtype=torch.float64),
    }
    out |= {f"final.{name}": weight for name, weight in weights.items()}
    write(HERE / "training.npz", out, peft=peft.__version__)


if __name__ == "__main__":
    main()
