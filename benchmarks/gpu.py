"""Are the Triton kernels right on this GPU, and how far from what it can do?

    python benchmarks/gpu.py [--out FOLDER] [--only checks kernels steps] [--minutes 7.5]

One GPU, one command, from the source tree; torch from 2.11, Triton, Python from 3.12; at most
--minutes, of which checks take 40 % at most and leave the rest to be timed: what no time was left
for is listed, what raised has failed, and neither keeps the rest from running. Prints as it goes,
and writes gpu.json with device, versions and commit to --out, else to $OUT, else to
benchmarks/results, anew after every case.

    checks    every kernel beside its readable twin in float64, on the GPU: the value and every
              gradient, in float32 and bf16, and the same bits at a second run; and `fit` with its
              step captured beside the ordinary loop (gpu_checks.py)
    kernels   each forward and backward in bf16, as Triton, as torch's fused form and as the
              readable one; of a captured graph, so that launching costs nothing, with the L2 cache
              flushed before each. Beside the time the rate, its share of the best that the GPU's
              own library reached here (products) or of a copy's (memory; what the forward pass
              left in the L2 cache the backward pass finds there, so a share can pass 1), and for
              LoRA the overhead over the frozen linears alone
    steps     whole training steps (gpu_steps.py)
    decoding  a token's pass call by call, and as one CUDA graph (gpu_decode.py)

Written and tested without a GPU: --dry runs every path on a CPU, in Triton's interpreter, at tiny
shapes; its times mean nothing and are not written. Until a result stands in benchmarks/results,
nothing is known about the speed of these kernels.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import gpu_decode
import gpu_steps
from certificate import write
from gpu_checks import On, Run, checks, said, thin_of

from minift.kernels.activations import ACTIVATIONS
from minift.kernels.choice import using
from minift.kernels.cross_entropy.dispatch import linear_cross_entropy
from minift.kernels.lora.dispatch import adapted_linears
from minift.kernels.mlp.dispatch import mlp
from minift.kernels.norm.dispatch import rms_norm
from minift.kernels.rope.dispatch import rotate_both
from minift.runtime import recorded
from minift.train import cuda_graph

PARTS = ("checks", "kernels", "steps", "decoding")
SHAPES = {  # rows, D, F, query and key heads, V, rank
    "SmolLM2-135M, 16k tokens": (16_384, 576, 1536, 9, 3, 49_152, 8),
    "Llama-3.2-1B, 4k tokens": (4096, 2048, 8192, 32, 8, 128_256, 16),
}
E, ROW = 64, 1024
APART = 5e-2  # of the largest hidden state: bf16, by other kernels, through all layers


def operations(
    on: On,
    N: int,
    D: int,
    F: int,
    H: int,
    K: int,
    V: int,
    rank: int,
    dtype: torch.dtype,
    row: int = ROW,
) -> dict[str, tuple[Run, list[Tensor], float, float]]:
    """Each operation: its forward pass, what it is differentiated by, operations of the main
    products forward and backward, and bytes that must be read and written."""
    T = min(N, row)
    B, e = max(1, N // T), dtype.itemsize
    x = on.drawn(B, T, D, dtype=dtype).requires_grad_()
    found: dict[str, tuple[Run, list[Tensor], float, float]] = {}
    groups = {"q k v": (D, (H * E, K * E, K * E)), "o": (H * E, (D,)), "gate up": (D, (F, F))}
    for name, (inputs, outs) in groups.items():
        into = x if inputs == D else on.drawn(B, T, inputs, dtype=dtype).requires_grad_()
        for r, label in ((rank, name), (0, f"{name} frozen")):
            members = [on.adapted(inputs, out, r, dtype) for out in outs]
            found[label] = (
                lambda into=into, members=members: adapted_linears(into, members),
                [into, *thin_of(members)], 4.0 * B * T * inputs * sum(outs), 0.0,
            )  # fmt: skip
    hidden, out = [on.adapted(D, F, rank, dtype) for _ in range(2)], on.adapted(F, D, rank, dtype)
    silu = ACTIVATIONS["silu"]
    found["SwiGLU MLP"] = (
        lambda: [mlp(x, hidden, out, silu)], [x, *thin_of([*hidden, out])],
        12.0 * B * T * D * F, 0.0,
    )  # fmt: skip
    weight = on.drawn(D, dtype=dtype)
    found["RMSNorm"] = (lambda: [rms_norm(x, weight, 1e-5)], [x], 0.0, 5.0 * B * T * D * e)
    q, k = (on.drawn(B, T, n, E, dtype=dtype).transpose(1, 2).requires_grad_() for n in (H, K))
    angle = on.drawn(B, 1, T, E // 2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    found["RoPE"] = (
        lambda: rotate_both(q, k, cos, sin), [q, k], 0.0, 4.0 * B * T * (H + K) * E * e
    )  # fmt: skip
    head = nn.Linear(D, V, bias=False, device=on.device).to(dtype).requires_grad_(False)
    rows, targets = on.drawn(B * T, D, dtype=dtype).requires_grad_(), torch.randint(V, (B * T,))
    targets = targets.to(on.device)
    found["linear cross-entropy"] = (
        lambda: [linear_cross_entropy(rows, head, head, targets, None)], [rows],
        4.0 * B * T * D * V, 0.0,
    )  # fmt: skip
    return found


# ---- times ---------------------------------------------------------------------------------------


class Clock:
    """Milliseconds of a call on the GPU: the median, L2 flushed before each, after a warm-up."""

    def __init__(self, on: On) -> None:
        self.dry = on.device != "cuda"
        size = 1 if self.dry else 4 * torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(size, dtype=torch.int8, device=on.device)

    def __call__(self, call: Callable[[], object], budget_ms: float = 120.0) -> float:
        call()
        if self.dry:
            return float("nan")
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        calls = 0
        while time.perf_counter() - start < 0.025 or calls < 3:  # warm-up
            call()
            torch.cuda.synchronize()
            calls += 1
        one = 1e3 * (time.perf_counter() - start) / calls
        found = []
        for _ in range(max(7, min(100, int(budget_ms / one)))):
            self.flush.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end))
        return statistics.median(found)


def as_graph(on: On, call: Callable[[], object]) -> Callable[[], object]:
    """The call's kernels alone."""
    return recorded(call, call) if on.device == "cuda" else call


def roofline(on: On, clock: Clock, sizes: Sequence[int], copied: int) -> dict[str, float]:
    """The best rate of a product in bf16, TFLOP/s, and of a copy, GB/s read and written."""
    found = []
    for n in sizes:
        a, b = on.drawn(n, n, dtype=torch.bfloat16), on.drawn(n, n, dtype=torch.bfloat16)
        found.append(2e-9 * n**3 / clock(lambda a=a, b=b: torch.mm(a, b)))
    source = torch.empty(copied, dtype=torch.int8, device=on.device)
    target = torch.empty_like(source)
    return {"TFLOP/s": max(found), "GB/s": 2e-6 * copied / clock(lambda: target.copy_(source))}


def kernels(on: On, clock: Clock, ours: str, shapes: dict[str, Any], rates: dict[str, float],
            late: Callable[[], bool], keep: Callable[[dict[str, Any]], None],
            row: int = ROW) -> dict[str, Any]:  # fmt: skip
    out: dict[str, Any] = {}
    for shape, sizes in shapes.items():
        frozen: dict[str, float] = {}
        found = operations(on, *sizes, torch.bfloat16, row)
        for name in sorted(found, key=lambda name: "frozen" not in name):  # those first
            if late():
                out.setdefault("left out: no time", []).append(f"{shape}, {name}")
                continue
            run, wanted, flops, traffic = found[name]
            cell: dict[str, Any] = {}
            for form, choice in (("triton", ours), ("torch", "torch"), ("readable", "reference")):
                if "frozen" in name and form != "torch":
                    continue
                try:
                    cell[form] = timed(on, clock, run, wanted, choice, (name, form) != WAITS)
                except Exception as error:  # on a GPU anything may come; other forms may still run
                    cell[form] = {"failed": said(error)}
                    continue
                ms = cell[form]["ms"]
                if flops:
                    cell[form]["TFLOP/s"] = 1e-9 * flops / ms
                    cell[form]["of_roofline"] = 1e-9 * flops / ms / rates["TFLOP/s"]
                if traffic:
                    cell[form]["GB/s"] = 1e-6 * traffic / ms
                    cell[form]["of_roofline"] = 1e-6 * traffic / ms / rates["GB/s"]
                if f"{name} frozen" in frozen:
                    cell[form]["overhead"] = ms / frozen[f"{name} frozen"] - 1
            if "ms" in cell["torch"] and "frozen" in name:
                frozen[name] = cell["torch"]["ms"]
            out[f"{shape}, {name}"] = cell
            print(f"    {shape}, {name}: {json.dumps(cell)}", flush=True)
            keep(out)
    return out


WAITS = "linear cross-entropy", "readable"  # it asks for the state of the random numbers


def timed(
    on: On, clock: Clock, run: Run, wanted: list[Tensor], choice: str, captured: bool
) -> dict[str, Any]:
    """Call by call, and as a graph where it can be captured."""
    with using(choice):
        gs = [torch.ones_like(y) for y in run()]

        def call() -> object:
            return torch.autograd.grad(list(run()), wanted, gs)

        eager = clock(call)
        if not captured:
            return {"eager_ms": eager, "ms": eager, "captured": False}
        return {"eager_ms": eager, "ms": clock(as_graph(on, call))}


# ---- all of it -----------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("torch", "triton", "transformers", "peft", "liger_kernel", "unsloth"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def device_facts(on: On) -> dict[str, Any]:
    if on.device != "cuda":
        return {"device": "a CPU, in Triton's interpreter: no times"}
    facts = torch.cuda.get_device_properties(0)
    return {
        "device": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "memory_gb": round(facts.total_memory / 2**30, 1),
        "multiprocessors": facts.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the folder of gpu.json; default $OUT")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--commit", help="what a copy without a repository was made from")
    parser.add_argument("--dry", action="store_true", help="on a CPU, tiny, interpreted")
    options = parser.parse_args()
    begin = time.perf_counter()
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
        cuda_graph.DEVICES = ("cpu",)  # the same step without a capture
    elif not torch.cuda.is_available():
        print("gpu.py: found no CUDA device, allowed one (or --dry)", file=sys.stderr)
        sys.exit(2)
    on = On("cpu" if options.dry else "cuda")
    ours = "triton"  # by name: it runs or says why not
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 is checked as float32

    most = 60 * options.minutes

    def late(needed: float = 0.0) -> bool:
        return time.perf_counter() - begin + needed > most

    result: dict[str, Any] = device_facts(on) | {"versions": versions(), "seconds": {}}
    out = options.out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)

    def done(part: str, found: Any, since: float) -> None:
        result[part] = found
        result["seconds"][part] = round(time.perf_counter() - since, 1)
        if out is not None or not options.dry:  # a dry run's numbers are none
            print(write("gpu", result, out, commit=options.commit), flush=True)

    def each(part: str, compared: Callable[..., Any], cases: dict[str, Any], needed: float,
             words: tuple[int, ...], since: float) -> None:  # fmt: skip
        """Case by case, as long as there is time for one more."""
        dtype, found = torch.float32 if options.dry else torch.bfloat16, {}
        for name, case in cases.items():
            if late(needed):
                found[name] = "left out: no time"
                continue
            print(f"    {name}", flush=True)
            try:
                found[name] = compared(case, on.device, dtype, ours, *words)
            except Exception as error:  # on a GPU anything may come; other cases may still run
                found[name] = {"failed": said(error)}
                traceback.print_exc()
            done(part, found, since)

    print(json.dumps(result), flush=True)
    for part in options.only:
        since = time.perf_counter()
        print(part, flush=True)
        if part == "checks":
            done(part, checks(on, ours, lambda: late(0.6 * most)), since)
        elif part == "kernels":
            clock = Clock(on)
            rates = roofline(on, clock, (16,), 64) if options.dry else roofline(
                on, clock, (4096, 8192), 2**30
            )  # fmt: skip
            print(f"    {rates}", flush=True)
            shapes = {"tiny": (20, 128, 48, 2, 1, 100, 2)} if options.dry else SHAPES
            kernels(
                on, clock, ours, shapes, rates,
                lambda: late(0.4 * most),  # which the steps and tokens need
                lambda found, p=part, r=rates, s=since: done(p, {"roofline": r} | found, s),
                10 if options.dry else ROW,
            )  # fmt: skip
        elif part == "decoding":
            models = {"tiny": gpu_steps.TINY} if options.dry else {
                "SmolLM2-135M": gpu_steps.SMOLLM2, "Llama-3.2-1B": gpu_steps.LLAMA_1B
            }  # fmt: skip
            words = (2, 6, 5) if options.dry else (4, gpu_decode.PROMPT, gpu_decode.NEW)
            each(part, gpu_decode.compared, models, 30, words, since)
        else:
            cases = gpu_steps.TINY_CASES if options.dry else gpu_steps.CASES
            words = (2, 1) if options.dry else (8, 6)
            each(part, gpu_steps.compared, cases, 45, words, since)
    failed = [*result.get("checks", {}).get("failed", []), *failures(result)]
    if failed:
        sys.exit("failed: " + "; ".join(failed))


def failures(found: dict[str, Any], at: str = "") -> Iterator[str]:
    """What raised or is too far from its twin, at any depth, in a line each."""
    if isinstance(found.get("failed"), str):
        yield f"{at}: {found['failed']}"
    if "apart" in found and not found["apart"] < APART * found["size"]:
        yield f"{at}: {found['apart']:.1e} apart, of {found['size']:.1e}"
    for name, inner in found.items():
        if isinstance(inner, dict):
            yield from failures(inner, f"{at}, {name}" if at else name)


if __name__ == "__main__":
    main()
