"""The choice of kernels is a block's, and what it held before comes back."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minift.errors import ConfigError
from minift.kernels import choice
from minift.kernels.choice import fused, using
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.adapters import trainable
from minift.peft.lora import LoRA
from minift.peft.methods import attach


def test_a_choice_ends_with_its_block_even_by_an_error():
    assert fused()
    with using("reference"):
        assert not fused()
        with using("auto"):
            assert fused()
        assert not fused()
    assert fused()
    with suppress(KeyError), using("reference"):
        raise KeyError
    assert fused()


def test_an_unknown_choice_names_the_known_ones():
    allowed = "kernels: found fast, allowed auto, triton, torch, reference"
    with pytest.raises(ConfigError, match=allowed), using("fast"):
        pass


def on(device, dtype=torch.bfloat16):
    """What the choice asks of a tensor."""
    return SimpleNamespace(is_cuda=device == "cuda", device=device, dtype=dtype)


@pytest.fixture
def there(monkeypatch):
    """Triton, installed or not."""

    def say(installed):
        monkeypatch.setattr(choice, "installed", lambda: installed)
        choice.tell.cache_clear()

    say(True)
    return say


@pytest.mark.parametrize(
    ("kernels", "device", "dtype", "expected"),
    [
        ("auto", "cuda", torch.bfloat16, "fused Triton"),
        ("auto", "cuda", torch.float32, "fused Triton"),
        ("auto", "cuda", torch.float64, "fused"),
        ("auto", "cpu", torch.bfloat16, "fused"),
        ("torch", "cuda", torch.bfloat16, "fused"),
        ("triton", "cuda", torch.float64, "fused Triton"),
        ("reference", "cuda", torch.bfloat16, "readable"),
    ],
)
def test_what_runs_where(there, kernels, device, dtype, expected):
    with using(kernels):
        assert choice.word(on(device, dtype)) == expected
        assert choice.triton(on(device, dtype)) == (expected == "fused Triton")


def test_a_gpu_without_triton_is_told_once(there, capsys):
    there(False)
    assert [choice.triton(on("cuda")) for _ in range(2)] == [False, False]
    assert not choice.triton(on("cpu"))
    out, told = capsys.readouterr()
    assert out == ""
    assert told.count("\n") == 1
    assert "no triton" in told
    assert "pip install 'minift[triton]'" in told


def test_triton_by_name_runs_or_says_why_not(there, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with using("triton"), pytest.raises(ConfigError, match="found triton on cpu, allowed on a GPU"):
        choice.triton(on("cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with using("triton"):
        assert choice.triton(on("cpu"))
    there(False)
    with pytest.raises(ConfigError, match="triton, which is not installed"), using("triton"):
        pass


def made(method):
    """A small model with a change on every linear, tokens and targets."""
    torch.manual_seed(0)
    config = ModelConfig(family="test", vocab=40, dim=16, layers=2, heads=4, kv_heads=2, head_dim=6,
                         ff=24, context=32, qk_norm=True, rope_dims=4)  # fmt: skip
    model = Transformer(config).double()
    attach(model, method)
    for p in trainable(model).values():
        torch.nn.init.normal_(p, std=0.3)
    return model, torch.randint(40, (2, 9)), torch.randint(40, (18,))


def test_a_whole_model_by_triton_is_the_readable_one(interpreted):
    """Every dispatch, with a change on every linear: the loss and all gradients."""
    interpreted("norm.triton")
    model, tokens, targets = made(LoRA(rank=3))

    def run():
        hidden = model(tokens, hidden_only=True)
        loss = model.nll(hidden.flatten(0, 1), targets)
        return [loss, *torch.autograd.grad(loss, list(trainable(model).values()))]

    with using("triton"):
        assert "Triton" in choice.word(model.embed.weight)
        found = run()
    with using("reference"):
        expected = run()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


class Asked(TorchDispatchMode):
    """Notes what a GPU would have to be waited for: a number, or a size that depends on numbers."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            self.found.add(name)
        if name in ("index", "index_put", "index_put_"):
            self.found |= {name for at in args[1] if at is not None and at.dtype == torch.bool}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernels", ["triton", "torch"])
def test_nothing_in_a_step_waits_for_a_number(interpreted, kernels):
    """Forward, loss and backward of a batch without padding.

    With dropout, too; but not of torch's form, which draws the seed of its mask on the CPU.
    """
    interpreted("lora.triton")
    model, tokens, targets = made(LoRA(rank=3, dropout=0.1 if kernels == "triton" else 0.0))
    with using(kernels), Asked() as asked:
        hidden = model.train()(tokens, hidden_only=True)
        (model.nll(hidden.flatten(0, 1), targets) / 18).backward()
    assert all(p.grad is not None for p in trainable(model).values())
    assert asked.found == set()
    with Asked() as asked:
        bool(tokens.any()), tokens[tokens > 3]
    assert asked.found == {"_local_scalar_dense", "index"}


def test_a_cpu_never_imports_triton():
    program = """
import pkgutil, sys
import minift
import torch
for module in pkgutil.walk_packages(minift.__path__, "minift."):
    if "triton" not in module.name and "__main__" not in module.name:
        __import__(module.name)
from minift.kernels.norm.dispatch import rms_norm
rms_norm(torch.ones(2, 4), torch.ones(4), 1e-5)
print("triton" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
