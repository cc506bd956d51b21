"""The benchmark for a GPU, on a machine without one: every path of it at tiny shapes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def ran(*words):
    environment = {k: v for k, v in os.environ.items() if k not in ("OUT", "TRITON_INTERPRET")}
    command = [sys.executable, "-W", "error", str(SCRIPT), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    done = ran()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "gpu.py: found no CUDA device, allowed one (or --dry)\n"


def test_a_dry_run_takes_every_path(tmp_path):
    if importlib.util.find_spec("triton") is None:
        if os.environ.get("MINIFT_REQUIRE_TRITON") == "1":
            pytest.fail("triton is not installed", pytrace=False)
        pytest.skip("triton is not installed")
    done = ran("--dry", "--out", str(tmp_path), "--commit", "abc")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["device"] == "a CPU, in Triton's interpreter: no times"
    assert found["versions"]["torch"] == torch.__version__
    assert found["certificate"]["commit"]
    assert found["checks"]["failed"] == []
    assert found["checks"]["left out: no time"] == []
    assert found["checks"]["float32 dropout"] < 1e-5
    assert found["checks"]["float32 fit captured"] < 1e-4
    assert sum("attention over texts" in name for name in found["checks"]) == 2
    cells = [cell for name, cell in found["kernels"].items() if name.startswith("tiny, ")]
    assert len(cells) == 10
    assert {form for cell in cells for form in cell} == {"triton", "torch", "readable"}
    (tiny,) = found["steps"].values()
    assert {"minift", "minift, torch", "minift, captured", "readable", "unsloth-like"} <= set(
        tiny["sides"]
    )
    for side in tiny["sides"].values():  # float32: the same steps, but for what is rounded
        assert side["losses"][-1] < side["losses"][0]
    assert tiny["losses_apart"] < 1e-5
    (rows,) = found["decoding"].values()
    for one in rows.values():  # a pass of fixed shape gives what the growing cache gives
        assert one["apart"] < 1e-5 * one["size"]
