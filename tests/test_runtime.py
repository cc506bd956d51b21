"""Process-wide settings: measured, set for a while, and put back whatever happens."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest
import torch

from minift import runtime
from minift.errors import ConfigError
from minift.runtime import Machine, advice, cores, device_of, machine, peak_memory, tuned
from minift.storage import cache_dir

FAST = Machine(threads=2, route=True, bf16=True)
PLAIN = Machine(threads=2, route=False, bf16=False)


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """What is found here stays here, and nothing is known from before."""
    monkeypatch.setattr(runtime, "NOTES", "machine.json")
    monkeypatch.setenv("MINIFT_CACHE", str(tmp_path / "cache"))
    machine.cache_clear()
    runtime.rates.cache_clear()
    yield
    machine.cache_clear()
    runtime.rates.cache_clear()


def settings():
    return torch.get_num_threads(), torch.get_float32_matmul_precision()


@pytest.fixture
def calls(monkeypatch):
    """What mallopt is told, in order."""
    made = []
    monkeypatch.setattr(runtime, "_mallopt", lambda: lambda *call: made.append(call))
    return made


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("found", [FAST, PLAIN])
def test_settings_come_back_even_after_an_error(monkeypatch, calls, before, fails, found):
    monkeypatch.setattr(runtime, "machine", lambda threads: found)
    original = settings()
    torch.set_float32_matmul_precision(before)
    try:
        try:
            with tuned() as given:
                assert given is found
                assert settings() == (2, "medium" if found is FAST else before)
                assert calls == list(runtime.KEEP_MEMORY)
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert fails
        assert settings() == (original[0], before)
        assert calls == [*runtime.KEEP_MEMORY, *runtime.GLIBC_DEFAULTS]
    finally:
        torch.set_float32_matmul_precision(original[1])


@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("before", ["highest", "high"])
def test_a_gpu_is_current_and_never_rounds_to_tf32_unasked(monkeypatch, before):
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda on: entered.append(on) or nullcontext())
    monkeypatch.setattr(runtime, "machine", lambda threads: FAST)
    original = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)
    try:
        with tuned(device="cuda:1"):
            assert torch.get_float32_matmul_precision() == before
        assert entered == [torch.device("cuda:1")]
    finally:
        torch.set_float32_matmul_precision(original)


@pytest.mark.usefixtures("fresh")
def test_the_self_test_changes_no_setting():
    before = settings()
    found = machine(1)
    assert settings() == before
    assert found.threads == 1
    assert machine(1) is found  # once a process


@pytest.mark.usefixtures("fresh")
def test_threads_are_the_cores_unless_given():
    assert machine().threads == cores() >= 1
    with tuned(1) as found:
        assert found.threads == torch.get_num_threads() == 1


ZEN, LAKE, OLD = "AuthenticAMD", "GenuineIntel", ""


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("vendor", "avx512_bf16", "amx", "error", "route", "bf16"), [
    (ZEN, True, False, 1e-7, True, True),
    (ZEN, False, False, 1e-7, True, False),  # no units: bf16 is slower than float32
    (ZEN, True, False, 1e-5, False, True),  # the route rounds to bf16
    (ZEN, True, False, 1e-1, False, False),
    (ZEN, True, False, float("nan"), False, False),
    (LAKE, True, False, 1e-7, False, True),  # MKL is fast there
    (LAKE, True, True, 1e-7, False, True),
    (ZEN, True, True, 1e-7, False, True),  # with AMX the route would round to bf16
    (OLD, False, False, 1e-7, False, False),  # ARM: nothing is known
    (ZEN, None, False, 1e-7, False, False),  # no AVX512 at all: torch does not take the route
])  # fmt: skip
def test_what_the_processor_has_decides(monkeypatch, vendor, avx512_bf16, amx, error, route, bf16):
    monkeypatch.setattr(runtime, "_cpuinfo", lambda field: vendor)
    monkeypatch.setattr(runtime, "_error", lambda y, exact: error)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: avx512_bf16 is not None)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bool(avx512_bf16))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert machine(1) == Machine(1, route, bf16)
    before = torch.get_float32_matmul_precision()
    with tuned(1):
        assert torch.get_float32_matmul_precision() == ("medium" if route else before)


@pytest.mark.usefixtures("fresh")
def test_a_product_that_differs_from_run_to_run_is_not_used(monkeypatch):
    products = iter([torch.zeros(2, 2), torch.ones(2, 2)])
    monkeypatch.setattr(runtime, "_error", lambda y, exact: 0.0)
    assert not runtime._exact(lambda: next(products), torch.zeros(2, 1), torch.zeros(2, 1), 1.0)


@pytest.mark.usefixtures("fresh")
def test_no_choice_asks_a_clock(monkeypatch):
    def clock():
        raise AssertionError("a clock was asked")

    for name in ("perf_counter", "monotonic", "time", "process_time"):
        monkeypatch.setattr(time, name, clock)
    machine(1)
    with tuned(1):
        pass
    advice(1, "bf16")


@pytest.mark.usefixtures("fresh")
def test_the_self_test_is_kept_for_the_next_process(monkeypatch):
    tests = []
    monkeypatch.setattr(runtime, "_self_test", lambda n: tests.append(n) or (True, False))
    for threads in (1, 1, 2):
        machine.cache_clear()
        assert machine(threads) == Machine(threads, True, False)
    assert tests == [1, 2]
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    machine.cache_clear()
    machine(1)
    assert tests == [1, 2, 1]  # another torch, another test


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("text", [
    b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"KEY": 1}',
    b'{"KEY": {"route": 1, "bf16": true}}',
    b'{"KEY": {"route": true}}', b" " * (runtime.NOTES_LIMIT + 1),
])  # fmt: skip
def test_odd_notes_are_tested_again(monkeypatch, text):
    monkeypatch.setattr(runtime, "_self_test", lambda n: (False, True))
    key = f"{runtime.processor()} · torch {torch.__version__} · 1 threads"
    cache_dir().mkdir(parents=True)
    (cache_dir() / runtime.NOTES).write_bytes(text.replace(b"KEY", key.encode()))
    assert machine(1) == Machine(1, False, True)
    machine.cache_clear()
    monkeypatch.setattr(runtime, "_self_test", lambda n: pytest.fail("the notes are whole again"))
    assert machine(1) == Machine(1, False, True)


@pytest.mark.usefixtures("fresh")
def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINIFT_CACHE", str(tmp_path / "file" / "below"))
    assert machine(1).threads == 1


def test_the_processor_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "CPUINFO", tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text(
        "vendor_id\t: Maker\nmodel name\t: Fast: one\n\nvendor_id: B\n"
    )
    assert runtime.processor().startswith("Maker Fast: one ")
    (tmp_path / "cpuinfo").unlink()
    assert runtime.processor()


@pytest.mark.usefixtures("fresh")
def test_rates_are_measured_once_and_above_nothing():
    found = runtime.rates(1)
    assert found.float32 > 0
    assert found.bf16 > 0
    assert runtime.rates(1) is found


@pytest.mark.usefixtures("fresh")
def test_the_best_rates_are_kept_for_the_next_process(monkeypatch):
    measured = iter([[100.0, 300.0], [101.0, 150.0], [400.0, 150.0]])
    monkeypatch.setattr(runtime, "_rates", lambda products: next(measured))
    for best in ((100.0, 300.0), (101.0, 300.0), (400.0, 300.0)):
        runtime.rates.cache_clear()
        assert runtime.rates(1) == runtime.Rates(*best)
    machine.cache_clear()
    monkeypatch.setattr(runtime, "_self_test", lambda n: pytest.fail("kept beside the rates"))
    machine(1)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("odd", [
    [1e9, 1.0], [float("nan"), 1.0], [True, 1.0], [2, 3], [500.0], [-1.0, 500.0], {"a": 1}, None,
])  # fmt: skip
def test_odd_rates_are_measured_again(monkeypatch, odd):
    monkeypatch.setattr(runtime, "_rates", lambda products: [100.0, 300.0])
    runtime._note(1, {"gflops": odd})
    assert runtime.rates(1) == runtime.Rates(100.0, 300.0)
    assert runtime._noted(1)["gflops"] == [100.0, 300.0]


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("route", "dtype", "words"), [
    (True, torch.bfloat16, ("bf16", "onednn")), (False, torch.float32, ("float32", "default")),
])  # fmt: skip
def test_what_decides_the_last_bit_is_said(monkeypatch, route, dtype, words):
    monkeypatch.setattr(runtime, "machine", lambda threads: Machine(threads, route, True))
    assert runtime.numerics(dtype, torch.device("cpu"), "fused") == {
        "dtype": words[0], "route": words[1], "kernels": "fused", "threads": torch.get_num_threads()
    }  # fmt: skip
    assert runtime.numerics(dtype, torch.device("cuda"), "fused")["route"] == "default"


def test_the_best_run_counts_and_all_meet_the_same_busy_moment(monkeypatch):
    now, order = [0.0], []
    busy = {1: 5, 2: 5, 4: 5}  # rounds in which everything takes five times as long

    def product(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds * busy.get(order.count(name) - 1, 1)

        return run

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    rates = runtime._rates([product("a", 0.001), product("b", 0.002)])
    rows, inputs, outputs = runtime.SHAPE
    flops = 2e-9 * rows * inputs * outputs
    assert rates == pytest.approx([flops / 0.001, flops / 0.002])
    assert order == ["a", "b"] * (len(order) // 2)
    assert now[0] == pytest.approx(runtime.MEASURED + 0.003, abs=0.016)  # and the first, untimed


def test_a_slow_product_is_measured_once_and_no_choice_hangs_on_one_run(monkeypatch):
    now, order = [0.0], []

    def product(name, seconds):
        def run():
            order.append(name)
            now[0] += seconds

        return run

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    runtime._rates([product("float32", 0.02), product("bf16", 2.0), product("routed", 0.01)])
    warm = ["float32", "bf16", "routed"]
    assert order == [*warm, *warm, "float32", "routed", "float32", "routed"]


def test_the_error_is_relative():
    exact = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    assert runtime._error(torch.tensor([[3.0, 4.0]]), exact) == 0
    assert runtime._error(torch.tensor([[3.0, 4.5]]), exact) == pytest.approx(0.1)


@pytest.mark.parametrize(("gpus", "choice", "found"), [
    (0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "auto", "cuda:0"), (2, "cuda", "cuda:0"),
    (2, "cuda:1", "cuda:1"), (2, "cpu", "cpu"),
])  # fmt: skip
def test_the_device_is_a_gpu_where_there_is_one(monkeypatch, gpus, choice, found):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert device_of(choice) == found


@pytest.mark.parametrize(("gpus", "choice", "allowed"), [
    (0, "cuda", "auto, cpu"), (1, "cuda:1", "auto, cpu, cuda:0"), (1, "tpu", "auto, cpu, cuda:0"),
])  # fmt: skip
def test_a_device_that_is_not_here_is_refused(monkeypatch, gpus, choice, allowed):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ConfigError, match=f"device: found {choice}, allowed {allowed}$"):
        device_of(choice)


def test_advice_names_what_is_right_here(monkeypatch):
    monkeypatch.setattr(runtime, "cores", lambda: 2)
    monkeypatch.setattr(runtime, "machine", lambda threads: PLAIN)
    assert advice() == advice(2, "float32") == []
    [threads, dtype] = advice(8, "bf16")
    assert threads == (
        "threads: found 8 on 2 cores, where they wait for each other; 2 is right here"
    )
    assert dtype == "dtype: bf16 has no units of its own here; it saves memory, not time"
    monkeypatch.setattr(runtime, "machine", lambda threads: FAST)
    assert advice(2, "bf16") == []


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_without_mallopt_nothing_breaks(monkeypatch, platform):
    def library(name):
        assert platform == "linux", "only Linux is asked for its C library"
        return object()  # has no mallopt, like musl

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(ctypes, "CDLL", library)
    monkeypatch.setattr(runtime, "machine", lambda threads: PLAIN)
    with tuned():
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 1


SUMS = """
import torch
from minift.runtime import tuned
x = torch.randn(70001, 64, generator=torch.Generator().manual_seed(0))
with tuned(8):
    print(float(x.sum()), float(torch.cumsum(x, 0).sum()))
"""


def test_openmp_takes_no_fewer_threads_on_a_busy_machine(tmp_path):
    """Of 8 threads, OMP_DYNAMIC=true leaves as many as cores are idle."""
    found = set()
    for dynamic in ("false", "true"):
        own = {"OMP_DYNAMIC": dynamic, "MINIFT_CACHE": str(tmp_path), "OMP_NUM_THREADS": "8"}
        done = subprocess.run([sys.executable, "-c", SUMS], env=os.environ | own, check=True,
                              capture_output=True, text=True)  # fmt: skip
        found.add(done.stdout)
    assert len(found) == 1


def test_cores_where_affinity_is_unknown(monkeypatch):
    monkeypatch.delattr(runtime.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(runtime.os, "cpu_count", lambda: 6)
    assert cores() == 6
    monkeypatch.setattr(runtime.os, "cpu_count", lambda: None)
    assert cores() == 1


def test_peak_memory_is_the_process_s_own(monkeypatch, tmp_path):
    assert peak_memory() > 10 << 20  # torch alone takes more
    monkeypatch.setattr(runtime, "STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    5000 kB\nVmRSS:\t    4000 kB\n")
    assert peak_memory() == 5_120_000


def test_peak_memory_without_proc_is_in_bytes(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime, "STATUS", tmp_path / "status")
    resource = pytest.importorskip("resource")
    assert peak_memory() > 10 << 20  # torch alone takes more

    class Usage:
        ru_maxrss = 5000

    monkeypatch.setattr(resource, "getrusage", lambda who: Usage)
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_memory() == 5_120_000
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory() == 5000
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() == 0


def test_trimming_needs_no_particular_c_library(monkeypatch):
    runtime.trim_memory()

    def absent(name):
        raise OSError("no such library")

    monkeypatch.setattr(runtime.ctypes, "CDLL", absent)
    runtime.trim_memory()
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: object())
    runtime.trim_memory()


def test_the_route_can_be_left_for_a_while():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        for when, expected in ((True, "highest"), (False, "medium")):
            with runtime.unrouted(when):
                assert torch.get_float32_matmul_precision() == expected
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
