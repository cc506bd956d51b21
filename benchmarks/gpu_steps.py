"""Whole training steps on a GPU, side by side: what benchmarks/gpu.py times last.

Random weights of a model's shape, LoRA on all linears, every token a target, AdamW, clipping; the
same tokens on every side. The sides:

    minift            its kernels in Triton, in a plain loop with torch's fused AdamW, as are all
                      sides but the captured one
    minift, torch     its fused form without Triton
    readable          its readable kernels, which do what PEFT's loop does, operation by operation;
                      not PEFT
    unsloth-like      its models by Unsloth's schedule, our re-implementation (unsloth_like.py)
    minift, captured  the step of `fit` with graph="on" (train/cuda_graph.py), its flat AdamW, the
                      rows copied to the device in every step; in a dry run the same step without a
                      capture. Made last: what a capture that fails leaves behind meets no other
    PEFT, PEFT+Liger  transformers' Llama with PEFT's LoRA, where they can be imported

The loop here waits for nothing; where a step of minift's, captured or not, makes the CPU wait for
the GPU, `waits` has the lines. The sides run in turn, in alternating order; a ratio is that of one
round.
"""

from __future__ import annotations

import gc
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from gpu_checks import said
from torch import Tensor, nn
from unsloth_like import scheduled

from minift.kernels.choice import using
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.adapters import trainable
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.train.config import TrainConfig
from minift.train.cuda_graph import GraphAdamW, GraphStep

RATE = 1e-4
Step = Callable[[], Tensor]  # one optimizer step -> its mean loss, on the device


@dataclass(frozen=True)
class Case:
    """A model's shape, rows and tokens of a row, rank."""

    sizes: dict[str, Any]
    rows: int
    length: int
    rank: int


SMOLLM2 = {"vocab": 49_152, "dim": 576, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64,
           "ff": 1536, "context": 8192, "rope_base": 1e5, "tied": True}  # fmt: skip
LLAMA_1B = {"vocab": 128_256, "dim": 2048, "layers": 16, "heads": 32, "kv_heads": 8, "head_dim": 64,
            "ff": 8192, "context": 8192, "rope_base": 5e5, "tied": True}  # fmt: skip
TINY = {"vocab": 50, "dim": 16, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "ff": 24,
        "context": 64, "tied": True}  # fmt: skip
CASES = {
    "SmolLM2-135M, 2k tokens": Case(SMOLLM2, 8, 256, 8),
    "SmolLM2-135M, 16k tokens": Case(SMOLLM2, 16, 1024, 8),
    "Llama-3.2-1B, 4k tokens": Case(LLAMA_1B, 4, 1024, 16),
}
OURS = ("minift", "minift, torch", "unsloth-like", "minift, captured")
TINY_CASES = {"tiny": Case(TINY, 2, 9, 2)}


@dataclass
class Side:
    """How one side takes a step, what it trains, and the losses of its first steps."""

    step: Step
    within: Callable[[], Any] = nullcontext
    losses: tuple[float, ...] = ()
    peak_mb: float = 0.0


def batch_of(case: Case, device: str) -> tuple[Tensor, Tensor]:
    """Tokens and targets (rows, length)."""
    shape = (case.rows, case.length + 1)
    drawn = torch.randint(case.sizes["vocab"], shape, generator=torch.Generator().manual_seed(0))
    return drawn[:, :-1].to(device), drawn[:, 1:].contiguous().to(device)


def model_of(case: Case, device: str, dtype: torch.dtype) -> Transformer:
    """Random weights, and changes that are no longer zero."""
    torch.manual_seed(0)
    with torch.device(device):
        model = Transformer(ModelConfig(family="llama", **case.sizes)).to(dtype)
    nn.init.normal_(model.embed.weight, std=0.02)
    attach(model, LoRA(rank=case.rank))
    for name, p in trainable(model).items():
        if name.endswith("B"):
            nn.init.normal_(p, std=0.01)
    return model.train()


def stepper(loss_of: Callable[[], Tensor], parameters: list[nn.Parameter]) -> Step:
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=True)

    def step() -> Tensor:
        loss = loss_of()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        torch.nn.utils.clip_grads_with_norm_(parameters, 1.0, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def of_minift(case: Case, device: str, dtype: torch.dtype) -> Step:
    model = model_of(case, device, dtype)
    tokens, targets = batch_of(case, device)

    def loss_of() -> Tensor:
        hidden = model(tokens, hidden_only=True)
        return model.nll(hidden.flatten(0, 1), targets.flatten()) / targets.numel()

    return stepper(loss_of, list(trainable(model).values()))


def of_fit(case: Case, device: str, dtype: torch.dtype) -> Step:
    """The step that `fit` captures, of the same tokens."""
    model = model_of(case, device, dtype)
    tokens, targets = (side.tolist() for side in batch_of(case, "cpu"))
    rows = [([*row, following[-1]], [1] * (case.length + 1))
            for row, following in zip(tokens, targets, strict=True)]  # fmt: skip
    parameters = trainable(model)
    optimizer = GraphAdamW(parameters, {}, betas=(0.9, 0.999), eps=1e-8, decay=0.0)
    config = TrainConfig(batch_size=case.rows, micro_batch_tokens=case.rows * case.length)
    taker = GraphStep(model, None, optimizer, parameters, config)

    def step() -> Tensor:
        taker.queue(rows, RATE)
        return taker.report[0].clone()  # the next step overwrites it

    return step


def of_peft(case: Case, device: str, dtype: torch.dtype, liger: bool) -> Step:
    """ImportError where one of them is missing. Liger's patches stay: run it after plain PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        apply_liger_kernel_to_llama()
    s = case.sizes
    config = LlamaConfig(
        vocab_size=s["vocab"], hidden_size=s["dim"], intermediate_size=s["ff"],
        num_hidden_layers=s["layers"], num_attention_heads=s["heads"],
        num_key_value_heads=s["kv_heads"], head_dim=s["head_dim"], tie_word_embeddings=s["tied"],
        max_position_embeddings=s["context"], attn_implementation="sdpa", use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        base = LlamaForCausalLM(config).to(dtype)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=case.rank, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora).train()
    tokens, targets_of = batch_of(case, device)
    labels = torch.cat((tokens[:, :1], targets_of[:, :-1]), dim=1)  # shifted again by the model
    return stepper(
        lambda: model(input_ids=tokens, labels=labels).loss,
        [p for p in model.parameters() if p.requires_grad],
    )  # fmt: skip


def sides_of(
    case: Case, device: str, dtype: torch.dtype, ours: str
) -> Iterator[tuple[str, Callable[[], Side]]]:
    """Name and how to make it. `ours`: the choice of kernels that means Triton here."""

    @contextmanager
    def unsloth_like() -> Iterator[None]:
        with using(ours), scheduled():
            yield

    def plain(within: Callable[[], Any]) -> Callable[[], Side]:
        return lambda: Side(of_minift(case, device, dtype), within)

    yield "minift", plain(lambda: using(ours))
    yield "minift, torch", plain(lambda: using("torch"))
    yield "readable", plain(lambda: using("reference"))
    yield "unsloth-like", plain(unsloth_like)
    for name, liger in (("PEFT", False), ("PEFT+Liger", True)):
        yield name, lambda liger=liger: Side(of_peft(case, device, dtype, liger))  # type: ignore[misc]
    yield "minift, captured", lambda: Side(of_fit(case, device, dtype), lambda: using(ours))


def waits(step: Step, device: str) -> list[str]:
    """The lines at which a step makes the CPU wait for the GPU."""
    if device != "cuda":
        return []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = [w for w in found if "called a synchronizing" in str(w.message)]
    return sorted({f"{w.filename.rpartition('/minift/')[2]}:{w.lineno}" for w in said})


def milliseconds(step: Step, count: int, device: str) -> float:
    """A step's time, over `count` steps of which none waits for another's end."""
    if device != "cuda":
        step()
        return float("nan")  # a CPU's time says nothing here
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / count


def compared(
    case: Case, device: str, dtype: torch.dtype, ours: str, rounds: int, steps: int
) -> dict[str, Any]:
    """Every side's time, memory and losses; ratios to minift's, round by round."""
    sides: dict[str, Side] = {}
    absent: dict[str, str] = {}
    for name, make in sides_of(case, device, dtype, ours):
        before = torch.cuda.memory_allocated() if device == "cuda" else 0
        try:
            side = make()
            if device == "cuda":  # what making it took is gone
                torch.cuda.reset_peak_memory_stats()
            with side.within():
                side.losses = tuple(float(side.step()) for _ in range(5))
        except Exception as error:  # on a GPU anything may come; the other sides may still run
            absent[name] = said(error)
            print(f"    {name}: left out, {absent[name]}", flush=True)
            continue
        if device == "cuda" and "captured" not in name:  # a graph's memory is not counted there
            side.peak_mb = (torch.cuda.max_memory_allocated() - before) / 2**20
        sides[name] = side
    if "minift" not in sides:
        return {"left_out": absent}
    waiting: dict[str, list[str]] = {}
    for name in set(sides) & {"minift", "minift, captured"}:
        with sides[name].within():
            waiting[name] = waits(sides[name].step, device)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for n in range(rounds):
        for name in list(sides) if n % 2 == 0 else list(sides)[::-1]:
            with sides[name].within():
                sides[name].step()
                times[name].append(milliseconds(sides[name].step, steps, device))
    tokens = case.rows * case.length
    out: dict[str, Any] = {"tokens": tokens, "left_out": absent, "waits": waiting, "sides": {}}
    for name, side in sides.items():
        middle = statistics.median(times[name])
        ratios = [t / m for t, m in zip(times[name], times["minift"], strict=True)]
        out["sides"][name] = {
            "step_ms": middle,
            "tokens_per_second": 1e3 * tokens / middle,
            "peak_mb": round(side.peak_mb),
            "times_minift": {"median": statistics.median(ratios), "least": min(ratios),
                             "most": max(ratios)},
            "losses": side.losses,
            "milliseconds": times[name],
        }  # fmt: skip
        print(f"    {name}: {middle:.3f} ms, {out['sides'][name]['times_minift']}", flush=True)
    # The same weights and tokens; bf16 rounds differently on each side.
    if "readable" in sides:
        own = [s.losses for n, s in sides.items() if n in OURS]
        exact = sides["readable"].losses
        out["losses_apart"] = max(
            abs(a - b) for losses in own for a, b in zip(losses, exact, strict=True)
        )
    sides.clear()
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return out
