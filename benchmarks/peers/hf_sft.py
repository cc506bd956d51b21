"""The same fine-tuning job in transformers + PEFT: its losses, its seconds, its memory.

    python benchmarks/peers/hf_sft.py JOB.json RESULT.json [--save FOLDER] [--tuned] ...

JOB (everything after "lrs" may be left out):
    model            Hugging Face folder, or a .gguf file (read by transformers, dequantised)
    adapter          PEFT folder to start from
    batches          [step][row][token id]: one list of rows per step, padded here on the right
    masks            the same shape, 0 or 1: 1 = this token is a target
    lrs              [step]
    clip, betas, eps, weight_decay            1.0, (0.9, 0.999), 1e-8, 0.0
    threads          torch threads, 2
    dtype            of the base: float32, bfloat16, float64; adapter_dtype: float32
    eval_prompts     [row][token id], scored before and after; eval_labels: [row] index of the truth
    label_ids        [label][token id]: each label's score is the sum of its tokens' log-probs

RESULT: losses, grad_norms, step_seconds, real_tokens, target_tokens (per step); load_seconds,
train_seconds; rss_loaded_mb, peak_rss_mb (VmHWM after the last step, before the second evaluation);
accuracy_before, accuracy_after, label_logp_before, label_logp_after ([row][label], if asked for);
options, versions, machine (load averages of the last minute before and after the steps: with other
work on the cores, two threads wait for each other and a step can take ten times as long).

A step is what a user writes: model(labels=...).loss, clip_grad_norm_, AdamW. The loss is the mean
over targets, which equals sum / count. --dtype float64 takes out the library's float32 casts
(hf_exact.py) and computes the loss from the logits, since the library's own loss casts them too.
--tuned adds what costs a user a few lines: oneDNN for float32 products, memory kept by the
allocator, fused AdamW.
"""

import argparse
import ctypes
import json
import os
import platform
import time
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def tune():
    """The two process switches, where they are safe: an AMX CPU would really round to bfloat16."""
    if not torch.cpu._is_amx_tile_supported():
        torch.set_float32_matmul_precision("medium")
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    libc = ctypes.CDLL(None)
    assert libc.mallopt(M_MMAP_MAX, 0) == 1
    assert libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1


def memory_mb(field):
    """VmRSS or VmHWM of this process; 0.0 where there is no /proc."""
    path = Path("/proc/self/status")
    if not path.exists():
        return 0.0
    lines = path.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def load_base(path, dtype, layers=None):
    """A folder or a GGUF file -> the model, cut to its first `layers` blocks."""
    path = Path(path)
    wide = torch.float32 if dtype == torch.float64 else dtype
    if path.suffix == ".gguf":
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=wide)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=wide)
    if layers is not None:
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
    return model


def load_adapter(model, folder, layers=None):
    """PEFT on the model; every tensor of the file must have found its place."""
    model = PeftModel.from_pretrained(model, folder, is_trainable=True)
    there = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    file = set(load_file(Path(folder) / "adapter_model.safetensors"))
    if layers is not None:  # an adapter of the whole model is cut with it
        file = {key for key in file if int(key.split(".layers.")[1].split(".")[0]) < layers}
    assert there == file, f"not in both: {sorted(there ^ file)[:5]}"
    return model


def pad(rows, fill=0):
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def collate(rows, masks):
    """-> input_ids, attention_mask, labels (B, T); -100 where nothing is to be learned."""
    tokens, learn = pad(rows), pad(masks)
    real = pad([[1] * len(row) for row in rows])
    return tokens, real, tokens.masked_fill(learn == 0, -100)


def mean_loss(model, tokens, real, labels, exact):
    if not exact:
        return model(input_ids=tokens, attention_mask=real, labels=labels).loss
    logits = model(input_ids=tokens, attention_mask=real).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)


@torch.no_grad()
def score(model, prompts, label_ids, batch=32):
    """[row][label]: log-probability of each label's tokens right after the prompt."""
    model.eval()
    llama = model.get_base_model()  # the adapter's layers are inside
    out = [[0.0] * len(label_ids) for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    shared = all(len(label) == 1 for label in label_ids)  # one pass tells them all
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        for first, label in enumerate(label_ids[:1] if shared else label_ids):
            texts = [prompts[row] + label[:-1] for row in rows]
            real = pad([[1] * len(text) for text in texts])
            hidden = llama.model(input_ids=pad(texts), attention_mask=real, use_cache=False)
            hidden = hidden.last_hidden_state  # (B, T, D)
            for i, row in enumerate(rows):
                end = len(prompts[row])
                logits = llama.lm_head(hidden[i, end - 1 : end - 1 + len(label)])
                if logits.dtype != torch.float64:
                    logits = logits.float()
                logp = logits.log_softmax(-1)  # (label tokens, V)
                if shared:
                    out[row] = [logp[0, one[0]].item() for one in label_ids]
                else:
                    out[row][first] = logp[range(len(label)), label].sum().item()
    model.train()
    return out


def accuracy(logp, gold):
    right = [
        max(range(len(row)), key=row.__getitem__) == g for row, g in zip(logp, gold, strict=True)
    ]
    return sum(right) / len(right)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--save", type=Path, help="folder for the trained adapter")
    parser.add_argument("--layers", type=int, help="keep the first N blocks only")
    parser.add_argument(
        "--dtype", help="instead of the job's dtype (and adapter_dtype, if float64)"
    )
    parser.add_argument("--threads", type=int, help="instead of the job's")
    parser.add_argument("--tuned", action="store_true", help="process switches and fused AdamW")
    args = parser.parse_args()
    job = json.loads(args.job.read_text())

    if args.tuned:
        tune()
    threads = args.threads or job.get("threads", 2)
    torch.set_num_threads(threads)
    dtype = getattr(torch, args.dtype or job.get("dtype", "float32"))
    exact = dtype == torch.float64
    adapter_dtype = dtype if exact else getattr(torch, job.get("adapter_dtype", "float32"))

    start = time.perf_counter()
    model = load_adapter(load_base(job["model"], dtype, args.layers), job["adapter"], args.layers)
    if exact:
        import hf_exact

        hf_exact.exact(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in weights:
        weight.data = weight.data.to(adapter_dtype)
    model.train()
    load_seconds, rss_loaded = time.perf_counter() - start, memory_mb("VmRSS")

    result = {}
    prompts, gold = job.get("eval_prompts"), job.get("eval_labels")
    if prompts:
        result["label_logp_before"] = score(model, prompts, job["label_ids"])
        result["accuracy_before"] = accuracy(result["label_logp_before"], gold)

    optimizer = torch.optim.AdamW(
        weights,
        lr=0.0,
        betas=tuple(job.get("betas", (0.9, 0.999))),
        eps=job.get("eps", 1e-8),
        weight_decay=job.get("weight_decay", 0.0),
        fused=args.tuned or None,
    )
    clip = job.get("clip", 1.0)
    for name in ("losses", "grad_norms", "step_seconds", "real_tokens", "target_tokens"):
        result[name] = []
    load_before, began = os.getloadavg()[0], time.perf_counter()
    for rows, masks, lr in zip(job["batches"], job["masks"], job["lrs"], strict=True):
        tick = time.perf_counter()
        tokens, real, labels = collate(rows, masks)
        optimizer.param_groups[0]["lr"] = lr
        loss = mean_loss(model, tokens, real, labels, exact)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        result["losses"].append(loss.item())
        result["grad_norms"].append(norm.item())
        result["step_seconds"].append(time.perf_counter() - tick)
        result["real_tokens"].append(int(real.sum()))
        result["target_tokens"].append(int((labels[:, 1:] != -100).sum()))
        del loss
    result |= {
        "train_seconds": time.perf_counter() - began,
        "machine": {
            "cores": os.cpu_count(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "load_before": load_before,
            "load_after": os.getloadavg()[0],
        },
        "load_seconds": load_seconds,
        "rss_loaded_mb": rss_loaded,
        "peak_rss_mb": memory_mb("VmHWM"),
    }
    if prompts:
        result["label_logp_after"] = score(model, prompts, job["label_ids"])
        result["accuracy_after"] = accuracy(result["label_logp_after"], gold)
    if args.save:
        model.save_pretrained(args.save, save_embedding_layers=False)
    result["options"] = {
        "dtype": str(dtype).removeprefix("torch."),
        "adapter_dtype": str(adapter_dtype).removeprefix("torch."),
        "layers": len(model.get_base_model().model.layers),
        "threads": threads,
        "tuned": args.tuned,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "attention": model.get_base_model().config._attn_implementation,
        "trainable": sum(weight.numel() for weight in weights),
    }
    result["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
    args.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({k: v for k, v in result.items() if not k.startswith("label_logp")}))


if __name__ == "__main__":
    main()
