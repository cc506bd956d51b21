"""What does each fused kernel gain over its readable twin, forward and backward?

    python benchmarks/kernels.py [--pairs 15] [--threads 2]

The shapes of SmolLM2-135M, LoRA of rank 8 on frozen weights, in rows of 256 tokens: T = 2,048 (a
usual step) and T = 256 (a small one), a base in float32 and in bf16. Both forms in one process, in
turn, in alternating order; a ratio is that of one pair. Beside them:

    roofline    of a frozen linear alone: the share of the rate of the main products that the fused
                form reaches, its main products' operations over its time
    overhead    of LoRA: the fused group's time over that of the same linears without a change
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from certificate import write

from minift.kernels.activations import ACTIVATIONS
from minift.kernels.attention.dispatch import attend
from minift.kernels.choice import using
from minift.kernels.cross_entropy.dispatch import linear_cross_entropy
from minift.kernels.lora.dispatch import adapted_linears
from minift.kernels.lora.reference import Adapted
from minift.kernels.mlp.dispatch import mlp
from minift.kernels.norm.dispatch import rms_norm
from minift.kernels.rope.dispatch import rotate
from minift.runtime import machine, tuned

D, F, V, HEADS, KV, E, R, ROW = 576, 1536, 49_152, 9, 3, 64, 8, 256
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
Run = Callable[[], Tensor]


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


def linear(inputs: int, outputs: int, dtype: torch.dtype, rank: int = R) -> Adapted:
    layer = nn.Linear(inputs, outputs, bias=False).to(dtype).requires_grad_(False)
    if not rank:
        return Adapted(layer)
    A, B = (torch.randn(*s).requires_grad_() for s in ((rank, inputs), (outputs, rank)))
    return Adapted(layer, A, B, 2.0)


def cases(T: int, dtype: torch.dtype) -> dict[str, tuple[Run, list[Tensor], float]]:
    """Each operation: its forward pass, what it is differentiated by, operations of main products
    of one forward pass."""
    B = T // ROW
    x = drawn(B, ROW, D, dtype=dtype).requires_grad_()
    found: dict[str, tuple[Run, list[Tensor], float]] = {}

    def of(members: list[Adapted]) -> list[Tensor]:
        return [x, *(t for m in members for t in (m.A, m.B) if t is not None)]

    groups = {"q k v": (D, (D, KV * E, KV * E)), "o": (D, (D,)), "gate up": (D, (F, F))}
    for name, (inputs, outs) in groups.items():
        for rank, label in ((R, name), (0, f"{name} frozen")):
            members = [linear(inputs, out, dtype, rank) for out in outs]

            def run(members: list[Adapted] = members) -> Tensor:
                return torch.cat([y.sum()[None] for y in adapted_linears(x, members)]).sum()

            found[label] = (run, of(members), 2.0 * T * inputs * sum(outs))
    hidden, out = [linear(D, F, dtype), linear(D, F, dtype)], linear(F, D, dtype)
    silu = ACTIVATIONS["silu"]
    found["mlp"] = (lambda: mlp(x, hidden, out, silu).sum(), of([*hidden, out]), 6.0 * T * D * F)
    q, k, v = (
        drawn(B, ROW, n, E, dtype=dtype).transpose(1, 2).requires_grad_() for n in (HEADS, KV, KV)
    )
    found["attention"] = (
        lambda: attend(q, k, v, None, True).sum(), [q, k, v], 2.0 * T * ROW * HEADS * E
    )  # fmt: skip
    angle = torch.randn(B, 1, ROW, E // 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    found["rope"] = (lambda: rotate(q, cos, sin).sum(), [q], 0.0)
    weight = drawn(D, dtype=dtype)
    found["norm"] = (lambda: rms_norm(x, weight, 1e-5).sum(), [x], 0.0)
    head = nn.Linear(D, V, bias=False).to(dtype).requires_grad_(False)
    rows = drawn(T, D, dtype=dtype).requires_grad_()
    targets = torch.randint(V, (T,))
    found["head and loss"] = (
        lambda: linear_cross_entropy(rows, head, head, targets, None), [rows], 2.0 * T * D * V
    )  # fmt: skip
    return found


def seconds(run: Run, wanted: list[Tensor], kernels: str) -> float:
    with using(kernels):
        begin = time.perf_counter()
        torch.autograd.grad(run(), wanted)
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    torch.manual_seed(0)
    rates = {"float32": machine(options.threads).rate, "bf16": machine(options.threads).bf16}
    result: dict[str, Any] = {}
    with tuned(options.threads):
        for dtype, kind in DTYPES.items():
            for T in (2048, 256):
                rows = result.setdefault(f"{dtype}, T = {T}", {})
                for name, (run, wanted, flops) in cases(T, kind).items():
                    pairs = []
                    for n in range(options.pairs + 2):
                        order = ("auto", "reference") if n % 2 else ("reference", "auto")
                        pairs.append({form: seconds(run, wanted, form) for form in order})
                    del pairs[:2]
                    ratios = sorted(pair["reference"] / pair["auto"] for pair in pairs)
                    fused = statistics.median(pair["auto"] for pair in pairs)
                    rows[name] = {
                        "fused_ms": round(1e3 * fused, 3),
                        "times_faster": round(statistics.median(ratios), 2),
                        "least": round(ratios[0], 2),
                        "most": round(ratios[-1], 2),
                    }
                    if flops:  # forward, and dx of the same size
                        share = 2 * flops / fused / (1e9 * rates[dtype])
                        rows[name]["roofline"] = round(share, 3)
                for name in ("q k v", "o", "gate up"):
                    frozen = rows.pop(f"{name} frozen")
                    rows[name]["overhead"] = round(rows[name]["fused_ms"] / frozen["fused_ms"], 3)
                for name, row in rows.items():
                    print(f"{dtype}, T = {T}, {name}: {row}", flush=True)
    print(write("kernels", {"rates_gflops": rates, "kernels": result}, options.out))


if __name__ == "__main__":
    main()
