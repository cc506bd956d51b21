"""What does each fused kernel gain over its readable twin, forward and backward?

    python benchmarks/kernels.py [--pairs 15] [--threads 2]

The shapes of SmolLM2-135M, LoRA of rank 8 on frozen weights, in rows of 256 tokens: T = 2,048 (a
usual step) and T = 256 (a small one), a base in float32 and in bf16. Both forms in one process, in
turn, in alternating order; a ratio is that of one pair. Beside them:

    roofline    of a frozen linear alone: the share of the rate of the main products that the fused
                form reaches, its main products' operations over its time
    overhead    of LoRA: the fused group's time over that of the same linears without a change, in
                turn with it
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
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
from minift.runtime import rates as measured
from minift.runtime import tuned

D, F, V, HEADS, KV, E, R, ROW = 576, 1536, 49_152, 9, 3, 64, 8, 256
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
Run = Callable[[], Sequence[Tensor]]
FROZEN = " frozen"


class Case:
    """One operation, ready to be run again and again."""

    def __init__(self, run: Run, wanted: Sequence[Tensor], flops: float = 0.0):
        """run: its forward pass; wanted: what it is differentiated by; flops: operations of the
        main products of one forward pass."""
        self.run, self.wanted, self.flops = run, list(wanted), flops
        # Numbers of their own: a sum's gradient, one number expanded, is copied by every product.
        self.gs = [torch.randn_like(y) for y in run()]

    def seconds(self, kernels: str) -> float:
        with using(kernels):
            begin = time.perf_counter()
            torch.autograd.grad(self.run(), self.wanted, self.gs)
            return time.perf_counter() - begin


def drawn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(dtype)


def linear(inputs: int, outputs: int, dtype: torch.dtype, rank: int = R) -> Adapted:
    layer = nn.Linear(inputs, outputs, bias=False).to(dtype).requires_grad_(False)
    if not rank:
        return Adapted(layer)
    A, B = (torch.randn(*s).requires_grad_() for s in ((rank, inputs), (outputs, rank)))
    return Adapted(layer, A, B, 2.0)


def cases(T: int, dtype: torch.dtype) -> dict[str, Case]:
    """Every operation by name, and the groups once more without a change."""
    B = T // ROW
    x = drawn(B, ROW, D, dtype=dtype).requires_grad_()
    found: dict[str, Case] = {}

    def of(members: list[Adapted]) -> list[Tensor]:
        return [x, *(t for m in members for t in (m.A, m.B) if t is not None)]

    groups = {"q k v": (D, KV * E, KV * E), "o": (D,), "gate up": (F, F)}
    for name, outs in groups.items():
        for rank, label in ((R, name), (0, name + FROZEN)):
            members = [linear(D, out, dtype, rank) for out in outs]
            run = partial(adapted_linears, x, members)
            found[label] = Case(run, of(members), 2.0 * T * D * sum(outs))
    hidden, out = [linear(D, F, dtype), linear(D, F, dtype)], linear(F, D, dtype)
    silu = ACTIVATIONS["silu"]
    found["mlp"] = Case(
        lambda: [mlp(x, hidden, out, silu)], of([*hidden, out]), 6.0 * T * D * F
    )  # fmt: skip
    q, k, v = (
        drawn(B, ROW, n, E, dtype=dtype).transpose(1, 2).requires_grad_() for n in (HEADS, KV, KV)
    )
    found["attention"] = Case(
        lambda: [attend(q, k, v, None, True)], [q, k, v], 2.0 * T * ROW * HEADS * E
    )  # fmt: skip
    angle = torch.randn(B, 1, ROW, E // 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    found["rope"] = Case(lambda: [rotate(q, cos, sin)], [q])
    weight = drawn(D, dtype=dtype)
    found["norm"] = Case(lambda: [rms_norm(x, weight, 1e-5)], [x])
    head = nn.Linear(D, V, bias=False).to(dtype).requires_grad_(False)
    rows = drawn(T, D, dtype=dtype).requires_grad_()
    targets = torch.randint(V, (T,))
    found["head and loss"] = Case(
        lambda: [linear_cross_entropy(rows, head, head, targets, None)], [rows], 2.0 * T * D * V
    )  # fmt: skip
    return found


def rounds(case: Case, frozen: Case | None, pairs: int) -> list[dict[str, float]]:
    """Every form's seconds in turn, in alternating order; two rounds to warm up are left out."""
    forms = [(case, "auto", "fused"), (case, "reference", "readable")]
    if frozen is not None:
        forms.append((frozen, "auto", "frozen"))
    found = []
    for n in range(pairs + 2):
        order = forms if n % 2 else forms[::-1]
        found.append({label: of.seconds(kernels) for of, kernels, label in order})
    return found[2:]


def middle(rounds: list[dict[str, float]], over: str, under: str) -> tuple[float, float, float]:
    """The ratio of two forms' seconds: the median of the rounds, the least and the most."""
    ratios = sorted(one[over] / one[under] for one in rounds)
    return statistics.median(ratios), ratios[0], ratios[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="the folder of the result file")
    options = parser.parse_args()
    torch.manual_seed(0)
    rates = asdict(measured(options.threads))
    result: dict[str, Any] = {}
    with tuned(options.threads):
        for dtype, kind in DTYPES.items():
            for T in (2048, 256):
                rows = result.setdefault(f"{dtype}, T = {T}", {})
                found = cases(T, kind)
                for name, case in found.items():
                    if name.endswith(FROZEN):
                        continue
                    each = rounds(case, found.get(name + FROZEN), options.pairs)
                    fused = statistics.median(one["fused"] for one in each)
                    faster, least, most = middle(each, "readable", "fused")
                    rows[name] = {
                        "fused_ms": round(1e3 * fused, 3),
                        "times_faster": round(faster, 2),
                        "least": round(least, 2),
                        "most": round(most, 2),
                    }
                    if case.flops:  # forward, and dx of the same size
                        share = 2 * case.flops / fused / (1e9 * rates[dtype])
                        rows[name]["roofline"] = round(share, 3)
                    if name + FROZEN in found:
                        rows[name]["overhead"] = round(middle(each, "fused", "frozen")[0], 3)
                    print(f"{dtype}, T = {T}, {name}: {rows[name]}", flush=True)
    print(write("kernels", {"rates_gflops": rates, "kernels": result}, options.out))


if __name__ == "__main__":
    main()
