"""What this machine can do, and the process-wide settings that follow, for as long as work lasts.

Three settings, undone at the end of `tuned`:
  - matrix products in float32: on CPUs where MKL takes its slow path, oneDNN's kernels are faster
    at the same precision. torch reaches them through `set_float32_matmul_precision`, which on a CPU
    with AMX would really round to bf16: so never with AMX;
  - memory: glibc hands freed blocks back to the system and pays for fresh pages at the next
    allocation; told to keep them, a training step stops faulting gigabytes;
  - threads: one a core that this process may use.
Linux-only pieces do nothing elsewhere.

What decides numbers follows from what the processor has and from a self-test of exactness, never
from a clock: a busy machine computes what an idle one does. The self-test runs once for a
processor, a version of torch and a number of threads, and is kept in minift's cache. Rates are
measured, the best are kept there too, and only plans are made of them.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from minift.errors import ConfigError, FormatError, StorageError
from minift.storage import cache_dir, read_file, write_file

Result = TypeVar("Result")
STATUS, CPUINFO = Path("/proc/self/status"), Path("/proc/cpuinfo")
SHAPE = (256, 576, 1536)  # rows, in, out of the test product: a small model's MLP
FLOAT32, BF16 = 1e-6, 4e-3  # largest relative errors that the self-test lets pass
MEASURED, ROUNDS = 0.06, 3  # seconds, and how often each is run at least
MOST = 1e5  # GFLOP/s that are believed
NOTES = "machine.json"  # in the cache: what the self-test found
NOTES_LIMIT = 1 << 20
DTYPES = {torch.bfloat16: "bf16"}  # as --dtype has it
WARM = 3  # calls before a capture, as torch's notes on CUDA graphs have it
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
KEEP_MEMORY = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1))
GLIBC_DEFAULTS = ((M_MMAP_MAX, 65_536), (M_TRIM_THRESHOLD, 128 << 10))


@dataclass(frozen=True)
class Machine:
    """What decides how this machine computes; the same whatever else runs on it."""

    threads: int
    route: bool  # products in float32 go through oneDNN
    bf16: bool  # it multiplies bf16 in units of its own


@dataclass(frozen=True)
class Rates:
    """GFLOP/s of the self-test's product, for plans."""

    float32: float
    bf16: float


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
    """By the processor and the self-test, which an earlier process may have run."""
    count = threads or cores()
    found = _noted(count)
    route, bf16 = found.get("route"), found.get("bf16")
    if not (isinstance(route, bool) and isinstance(bf16, bool)):
        route, bf16 = _self_test(count)
        _note(count, {"route": route, "bf16": bf16})
    return Machine(count, route, bf16)


def processor() -> str:
    """Maker, model and instructions, in words."""
    units = (
        ("AMX", torch.cpu._is_amx_tile_supported()),
        ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported()),
    )
    kinds = [torch.backends.cpu.get_cpu_capability(), *(name for name, there in units if there)]
    name = _cpuinfo("model name") or platform.processor() or platform.machine()
    return " ".join([_cpuinfo("vendor_id") or platform.system(), name, *kinds])


def _cpuinfo(field: str) -> str:
    """The first value of a field of /proc/cpuinfo; empty where there is none."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    rows = (line.partition(":") for line in text.splitlines())
    return next((value.strip() for name, _, value in rows if name.strip() == field), "")


def _notes() -> dict[str, object]:
    """What earlier processes found; nothing where the file is missing or odd."""
    try:
        notes = json.loads(read_file(cache_dir() / NOTES, limit_bytes=NOTES_LIMIT))
    except (FormatError, ValueError, RecursionError, OSError, RuntimeError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _key(threads: int) -> str:
    return f"{processor()} · torch {torch.__version__} · {threads} threads"


def _noted(threads: int) -> dict[str, object]:
    found = _notes().get(_key(threads))
    return found if isinstance(found, dict) else {}


def _note(threads: int, facts: dict[str, object]) -> None:
    """Keep them for the next process; where that is not possible, it finds them itself."""
    notes = _notes() | {_key(threads): _noted(threads) | facts}
    with suppress(ConfigError, StorageError, OSError, RuntimeError):
        text = json.dumps(notes, indent=1, ensure_ascii=False)
        write_file(cache_dir() / NOTES, text.encode())


def _self_test(threads: int) -> tuple[bool, bool]:
    """Whether oneDNN's route and bf16 are to be used: there, of use, exact, the same twice.

    The route is of use where MKL takes its slow path, on processors that Intel did not make (AMD
    Zen 5: twice as fast, Zen 4: a tenth); on Intel's MKL is as fast. torch sends nothing that way
    without AVX512. bf16 is of use where there are units for it, AVX512-BF16 (AMD: 1.8 to 1.9 times
    float32) or AMX: without, it is converted back and forth, and slower than float32. On ARM,
    Apple's too, neither has been measured: float32 as torch has it.
    """
    amx, vendor = torch.cpu._is_amx_tile_supported(), _cpuinfo("vendor_id")
    units = amx or torch.cpu._is_avx512_bf16_supported()
    taken = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_supported() and not amx
    slow = vendor not in ("", "GenuineIntel") and taken
    x, w = _operands()
    with _threads(threads):
        route = slow and _exact(lambda: _routed(x, w), x, w, FLOAT32)
        xb, wb = x.bfloat16(), w.bfloat16()
        linear = torch.nn.functional.linear
        return route, units and _exact(lambda: linear(xb, wb), xb, wb, BF16)


def _exact(product: Callable[[], Tensor], x: Tensor, w: Tensor, most: float) -> bool:
    one, other = product(), product()
    return torch.equal(one, other) and _error(one, x.double() @ w.double().T) < most


def _operands() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows, inputs, outputs = SHAPE
    x = torch.randn(rows, inputs, generator=generator)
    return x, torch.randn(outputs, inputs, generator=generator)


def _routed(x: Tensor, w: Tensor) -> Tensor:
    with _precision("medium"):
        return torch.nn.functional.linear(x, w)


@functools.cache
def rates(threads: int | None = None) -> Rates:
    """Measured once a process, in a twentieth of a second: for plans, never for a choice.

    The best that any process measured here, since a busy moment makes all of them small.
    """
    here = machine(threads)
    x, w = _operands()
    xb, wb = x.bfloat16(), w.bfloat16()
    linear = torch.nn.functional.linear
    float32 = _routed if here.route else linear
    with _threads(here.threads):
        found = _rates([lambda: float32(x, w), lambda: linear(xb, wb)])
    before = _noted(here.threads).get("gflops")
    if not isinstance(before, list) or len(before) != 2 or not all(map(_is_rate, before)):
        before = [0.0, 0.0]
    best = [max(pair) for pair in zip(found, before, strict=True)]
    if any(new > 1.02 * old for new, old in zip(best, before, strict=True)):
        _note(here.threads, {"gflops": best})
    return Rates(*best)


def _is_rate(value: object) -> bool:
    return isinstance(value, float) and 0 < value < MOST


def numerics(model_dtype: torch.dtype, device: torch.device, kernels: str) -> dict[str, object]:
    """What decides the last bit of a result, in words, for run.json."""
    here = machine(torch.get_num_threads()) if device.type == "cpu" else None
    return {
        "dtype": DTYPES.get(model_dtype, str(model_dtype).removeprefix("torch.")),
        "route": "onednn" if here is not None and here.route else "default",
        "kernels": kernels,
        "threads": torch.get_num_threads(),
    }


def advice(threads: int | None = None, dtype: str | None = None) -> list[str]:
    """What is slower than it need be in these settings on this machine, a line each."""
    found = []
    if threads is not None and threads > cores():
        found.append(
            f"threads: found {threads} on {cores()} cores, where they wait for each other; "
            f"{cores()} is right here"
        )
    if dtype == "bf16" and not machine(threads).bf16:
        found.append("dtype: bf16 has no units of its own here; it saves memory, not time")
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
    torch.set_num_threads(count)  # which tells MKL, too, to take them all
    _take_all_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _take_all_threads() -> None:
    """Where OMP_DYNAMIC is set, OpenMP takes fewer threads the busier the machine is (libgomp: the
    cores less the load average), which cuts sums otherwise. Switched off in this thread for good.
    """
    if sys.platform == "linux" and os.environ.get("OMP_DYNAMIC"):
        library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
        with suppress(AttributeError, OSError):  # a torch with another runtime
            ctypes.CDLL(str(library)).omp_set_dynamic(0)


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
