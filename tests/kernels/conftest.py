"""Triton's kernels on a CPU: its interpreter runs each program as numpy.

Two things of the interpreter are put right, for a GPU does otherwise: it rounds to bf16 towards
zero, not to the nearest, and it multiplies the bits of bf16 matrices as whole numbers. What it
cannot show at all: a race between threads, or an approximate exp.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`interpreted("norm.triton")` is that module of minift/kernels; skips where no Triton is.

    With MINIFT_REQUIRE_TRITON=1 a missing one fails the test instead.
    """
    if importlib.util.find_spec("triton") is None:
        if os.environ.get("MINIFT_REQUIRE_TRITON") == "1":
            pytest.fail("triton is not installed", pytrace=False)
        pytest.skip("triton is not installed")
    # Triton asks when a kernel is defined, its own included: so before it is first imported.
    first = "triton" not in sys.modules
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    triton = importlib.import_module("triton")
    if not first and type(triton.language.sum).__name__ != "InterpretedFunction":
        pytest.fail("triton was imported before its interpreter was asked for", pytrace=False)
    put_right(importlib.import_module("triton.runtime.interpreter"), monkeypatch)
    return lambda name: importlib.import_module(f"minift.kernels.{name}")


def put_right(interpreter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bf16, float32 = interpreter.tl.bfloat16, interpreter.tl.float32
    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def converted(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) == (bf16, float32):
            return data.astype(np.uint32) << 16
        if (source, target) == (float32, bf16):
            bits = torch.from_numpy(np.array(data)).bfloat16().view(torch.int16)
            return bits.numpy().view(np.uint16)
        return convert(data, source, target, mode)

    def product(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (builder.cast_impl(x, float32) if x.dtype.scalar == bf16 else x for x in (a, b))
        return dot(builder, a, b, *rest)

    monkeypatch.setattr(interpreter, "_convert_float", converted)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", product)
