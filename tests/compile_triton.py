"""Do the Triton kernels compile to machine code for GPUs that are not here?

    python tests/compile_triton.py [--capability 80 90]

Each operation runs forward and backward on a CPU with its launches replaced by what comes before a
launch: Triton's own compiler, down to the machine code of each capability (80: A100, 90: H100 and
H200). What a kernel gives is not looked at, tests/kernels/*/test_triton.py do that. Fails if one
does not compile, or wants more fast memory than the smaller GPUs of that generation have.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from minift.kernels.activations import ACTIVATIONS
from minift.kernels.cross_entropy import triton as cross_entropy
from minift.kernels.lora import triton as lora
from minift.kernels.lora.reference import Adapted
from minift.kernels.mlp import triton as mlp
from minift.kernels.norm import triton as norm
from minift.kernels.rope import triton as rope

MOST = 99 * 1024  # bytes of shared memory that a block may have, from capability 8.6 on


class Absent:
    """A driver that knows what to compile for, and no more."""

    def __init__(self, capability: int):
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiled_only(capability: int) -> Iterator[dict[str, int]]:
    """The shared memory of every kernel that would have been launched, its largest."""
    found: dict[str, int] = {}
    run = JITFunction.run

    def prepare(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        name = f"{self.fn.__module__.split('.')[2]} {self.fn.__name__}"
        found[name] = max(found.get(name, 0), kernel.metadata.shared)
        return kernel

    triton.runtime.driver.set_active(Absent(capability))
    JITFunction.run = prepare
    try:
        yield found
    finally:
        JITFunction.run = run


def adapted(inputs: int, outputs: int, rank: int, dtype: torch.dtype, drop: float) -> Adapted:
    linear = nn.Linear(inputs, outputs).to(dtype).requires_grad_(False)
    A, B = torch.ones(rank, inputs).requires_grad_(), torch.ones(outputs, rank).requires_grad_()
    return Adapted(linear, A, B, 0.5, drop)


def everything(dtype: torch.dtype) -> Iterator[Tensor]:
    """A sum to be differentiated for every kernel, at the shapes of SmolLM2-135M."""
    x = torch.ones(2, 40, 576, dtype=dtype, requires_grad=True)
    for offset in (0.0, 1.0):
        yield norm.rms_norm(x, torch.ones(576, dtype=dtype), 1e-5, offset).sum()
    q, k = (torch.ones(2, 40, n, 64, dtype=dtype).transpose(1, 2) for n in (9, 3))
    for half in (32, 16):
        angle = torch.ones(2, 1, 40, half, dtype=dtype)
        yield sum(y.sum() for y in rope.rotate_both(q.requires_grad_(), k, angle, angle))
    head, rows = nn.Linear(576, 5000).to(dtype).requires_grad_(False), x.view(80, 576)
    for cap in (None, 30.0):
        yield cross_entropy.linear_cross_entropy(rows, head, torch.ones(80).long(), cap)
    for rank in (1, 8, 64, 256):
        for drop in (0.0, 0.1):
            yield lora.adapted_linears(x, [adapted(576, 192, rank, dtype, drop)])[0].sum()
    for act in ACTIVATIONS.values():
        hidden = [adapted(576, 96, 8, dtype, 0.0) for _ in range(2)]
        yield mlp.mlp(x, hidden, adapted(96, 576, 8, dtype, 0.0), act).sum()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, nargs="*", default=[80, 90])
    options = parser.parse_args()
    bad = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for capability in options.capability:
            with compiled_only(capability) as found:
                for dtype in (torch.bfloat16, torch.float32):
                    for loss in everything(dtype):
                        loss.backward()
            for name, shared in found.items():
                print(f"capability {capability}, {name}: {shared / 1024:.0f} KB shared", flush=True)
                if shared > MOST:
                    bad.append(f"{name} wants {shared} bytes for capability {capability}")
    if bad:
        sys.exit("; ".join(bad))


if __name__ == "__main__":
    main()
