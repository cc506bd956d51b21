"""What this machine can do, and the process-wide settings that follow, for as long as work lasts.

Three settings, each found by a test on the spot and undone at the end of `tuned`:
  - matrix products in float32: on CPUs where MKL takes its slow path, oneDNN's kernels are twice
    as fast at the same precision. torch reaches them through `set_float32_matmul_precision`, which
    on a CPU with AMX would really round to bf16: so it is used only without AMX, and only where a
    self-test against float64 shows float32 accuracy and a gain;
  - memory: glibc hands freed blocks back to the system and pays for fresh pages at the next
    allocation; told to keep them, a training step stops faulting gigabytes;
  - threads: one a core that this process may use.
Linux-only pieces do nothing elsewhere.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from minift.errors import ConfigError

Result = TypeVar("Result")
STATUS = Path("/proc/self/status")
SHAPE = (256, 576, 1536)  # rows, in, out of the test product: a small model's MLP
MEASURED, ROUNDS = 0.06, 3  # seconds, and how often each is run at least: no choice by one run
WARM = 3  # calls before a capture, as torch's notes on CUDA graphs have it
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
KEEP_MEMORY = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))
GLIBC_DEFAULTS = ((M_MMAP_MAX, 65_536), (M_TRIM_THRESHOLD, 128 << 10))


@dataclass(frozen=True)
class Machine:
    """What the self-test found. Rates are GFLOP/s on `threads` threads."""

    threads: int
    float32: float  # torch's default route
    routed: float  # through oneDNN; 0 where it is unavailable or not exact
    bf16: float

    @property
    def route(self) -> bool:
        return self.routed > 1.15 * self.float32

    @property
    def rate(self) -> float:
        """The float32 rate that `tuned` gives."""
        return self.routed if self.route else self.float32

    @property
    def prefers_bf16(self) -> bool:
        return self.bf16 > 1.2 * self.rate


def device_of(choice: str) -> str:
    """`auto` is the first GPU that torch can use here, or else the CPU.

    Raises ConfigError for a device that torch does not know, or that is not here.
    """
    here = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if choice == "auto":
        return here[0] if here else "cpu"
    if choice == "cuda" and here:
        return here[0]
    if choice != "cpu" and choice not in here:
        raise ConfigError(f"device: found {choice}, allowed auto, {', '.join(['cpu', *here])}")
    return choice


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def machine(threads: int | None = None) -> Machine:
    """Measure once a process, in about a tenth of a second."""
    generator = torch.Generator().manual_seed(0)
    rows, inputs, outputs = SHAPE
    x = torch.randn(rows, inputs, generator=generator)
    w = torch.randn(outputs, inputs, generator=generator)
    exact = x.double() @ w.double().T
    xb, wb = x.bfloat16(), w.bfloat16()
    linear = torch.nn.functional.linear

    def routed() -> Tensor:
        with _precision("medium"):
            return linear(x, w)

    wanted = threads or cores()
    with _threads(wanted):
        products = [lambda: linear(x, w), lambda: linear(xb, wb)]
        if not torch.cpu._is_amx_tile_supported() and _error(routed(), exact) < 1e-6:
            products.append(routed)
        float32, bf16, *other = _rates(products)
    return Machine(wanted, float32, other[0] if other else 0.0, bf16)


def advice(threads: int | None = None, dtype: str | None = None) -> list[str]:
    """What is slower than it need be in these settings on this machine, a line each."""
    found = []
    if threads is not None and threads > cores():
        found.append(
            f"threads: found {threads} on {cores()} cores, where they wait for each other; "
            f"{cores()} is right here"
        )
    if dtype == "bf16":
        here = machine(threads)
        if here.bf16 < here.rate:
            found.append(
                f"dtype: bf16 has no units of its own here: {here.bf16:.0f} GFLOP/s, "
                f"float32 {here.rate:.0f}; it saves memory, not time"
            )
    return found


def _error(y: Tensor, exact: Tensor) -> float:
    return float((y.double() - exact).norm() / exact.norm())


def _rates(products: Sequence[Callable[[], Tensor]]) -> list[float]:
    """GFLOP/s of each, by its best run: whatever else runs here only makes one slower.

    In turn, so that a busy moment meets all of them; one that takes all the time itself, once.
    """
    best = [float("inf")] * len(products)
    for product in products:
        product()
    until, rounds = time.perf_counter() + MEASURED, 0
    while rounds < ROUNDS or time.perf_counter() < until:
        for i, product in enumerate(products):
            if not rounds or best[i] < MEASURED:
                start = time.perf_counter()
                product()
                best[i] = min(best[i], time.perf_counter() - start)
        rounds += 1
    rows, inputs, outputs = SHAPE
    return [2e-9 * rows * inputs * outputs / seconds for seconds in best]


@contextmanager
def tuned(threads: int | None = None, device: torch.device | str = "cpu") -> Iterator[Machine]:
    """The settings above, for the time of the block; whatever was set before comes back.

    device: where the model is. A GPU becomes the current one, where kernels go that were not told;
    and products in float32 are left alone, since the same switch would let it round them to TF32.
    """
    found, on = machine(threads), torch.device(device)
    route = found.route and on.type == "cpu"
    with _threads(found.threads), _precision("medium" if route else None), _memory(), _on(on):
        yield found


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _precision(name: str | None) -> Iterator[None]:
    # TRAP: reading torch.backends.mkldnn.matmul.fp32_precision beside this API raises; use one.
    before = torch.get_float32_matmul_precision()
    if name is not None:
        torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def unrouted(when: bool) -> Iterator[None]:
    """Without oneDNN's route, for small products: it costs a call more than they gain by it."""
    with _precision("highest" if when else None):
        yield


@contextmanager
def _memory() -> Iterator[None]:
    mallopt = _mallopt()
    for option in KEEP_MEMORY:
        mallopt(*option)
    try:
        yield
    finally:
        for option in GLIBC_DEFAULTS:
            mallopt(*option)


def _mallopt() -> Callable[[int, int], object]:
    if sys.platform == "linux":
        try:
            return ctypes.CDLL(None).mallopt
        except (AttributeError, OSError):  # a C library other than glibc
            pass
    return lambda option, value: None


def trim_memory() -> None:
    """Hand freed memory back to the system, where the C library does that when told.

    Between large blocks that come and go, small ones that stay cut the free room into pieces in
    which the next large one does not fit: the process grows, and most of it is empty.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def recorded(call: Callable[[], Result], warm: Callable[[], object]) -> Callable[[], Result]:
    """`call` as one CUDA graph, `warm` called before; every replay writes its result anew.

    Raises RuntimeError where something in it cannot be captured.
    """
    before, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            warm()
    before.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = call()
    finally:  # torch leaves its own stream the current one where a capture cannot be ended
        torch.cuda.set_stream(before)

    def replay() -> Result:
        graph.replay()
        return result

    return replay


def peak_memory() -> int:
    """Bytes that this process held at its peak; 0 where the system does not say."""
    if STATUS.exists():  # getrusage's starts from what the parent held when it made this process
        return int(STATUS.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
