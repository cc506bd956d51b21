"""Decoding on a GPU: what benchmarks/gpu.py times after the training steps.

Random weights of a model's shape in bf16, prompts of random tokens, the same tokens fed to every
side, 1, 8 and 32 rows:

    growing     a token's pass call by call, its cache growing
    captured    the same as one CUDA graph over a static cache (minift/generation/static_cache.py)

`apart` is the largest difference between their hidden states, beside `size`, the largest of those.
A GPU's libraries choose other kernels for other shapes, so the two round differently. The sides
take turns; a ratio is that of one round.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from minift.generation.cache import KVCache
from minift.generation.decode_weights import decode_weights
from minift.generation.static_cache import DynamicPass, StaticPass
from minift.kernels.choice import using
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer

BATCHES = (1, 8, 32)
PROMPT, NEW = 64, 64


def model_of(sizes: dict[str, Any], device: str, dtype: torch.dtype) -> Transformer:
    torch.manual_seed(0)
    with torch.device(device):
        model = Transformer(ModelConfig(family="llama", **sizes)).to(dtype)
    nn.init.normal_(model.embed.weight, std=0.02)
    return model.eval()


def side(model: Transformer, prompts: Tensor, new: int, fixed: bool) -> DynamicPass | StaticPass:
    """A pass that goes on after the prompts (B, T)."""
    B, T = prompts.shape
    weight = model.embed.weight
    cache = KVCache(model.config, B, T + new, dtype=weight.dtype, device=weight.device)
    model(prompts, cache=cache, hidden_only=True)
    if not fixed:
        return DynamicPass(model, cache)
    found = StaticPass(model, cache)
    if weight.device.type != "cuda":
        found.replay = found.plain
    return found


def told(one: DynamicPass | StaticPass, tokens: Tensor) -> tuple[float, Tensor]:
    """Milliseconds a token after the first two, and all hidden states (new, B, D)."""
    hidden = [one(tokens[0]), one(tokens[1])]
    hidden = [h.clone() for h in hidden]
    gpu = tokens.device.type == "cuda"
    if gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for row in tokens[2:]:
        hidden.append(one(row).clone())
    if gpu:
        torch.cuda.synchronize()
    took = 1e3 * (time.perf_counter() - begin) / (len(tokens) - 2)
    return took if gpu else float("nan"), torch.stack(hidden)


@torch.no_grad()
def compared(
    sizes: dict[str, Any],
    device: str,
    dtype: torch.dtype,
    ours: str,
    rounds: int,
    prompt: int,
    new: int,
) -> dict[str, Any]:
    model, out = model_of(sizes, device, dtype), {}
    for B in BATCHES:
        drawn = torch.randint(
            sizes["vocab"], (B, prompt + new), generator=torch.Generator().manual_seed(B)
        ).to(device)
        prompts, tokens = drawn[:, :prompt], drawn[:, prompt:].T.contiguous()
        times: dict[str, list[float]] = {"growing": [], "captured": []}
        states: dict[str, Tensor] = {}
        with using(ours), decode_weights(model, new):
            for n in range(rounds):
                for name in list(times) if n % 2 == 0 else list(times)[::-1]:
                    took, states[name] = told(side(model, prompts, new, name == "captured"), tokens)
                    times[name].append(took)
        growing, captured = (statistics.median(times[name]) for name in times)
        ratios = [a / b for a, b in zip(*times.values(), strict=True)]
        out[f"{B} rows"] = {
            "growing_ms": growing,
            "captured_ms": captured,
            "tokens_per_second": 1e3 * B / captured,
            "times_captured": {"median": statistics.median(ratios), "least": min(ratios),
                               "most": max(ratios)},
            "apart": float((states["growing"] - states["captured"]).abs().max()),
            "size": float(states["growing"].abs().max()),
        }  # fmt: skip
        print(f"    {B} rows: {out[f'{B} rows']}", flush=True)
    del model, states
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return out
