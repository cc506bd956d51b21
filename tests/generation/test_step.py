"""A step past the modules has the bits of the forward pass, and is not taken where it could not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.generation.cache import KVCache
from minift.generation.decode import decode
from minift.generation.decode_weights import decode_weights
from minift.generation.step import Step, step_of
from minift.kernels.choice import using
from minift.kernels.quantized.linear import QuantizedLinear
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.adapters import disabled
from minift.peft.bottleneck import Bottleneck
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.peft.prefix import Prefix
from minift.peft.slots import linears

GOLDEN = Path(__file__).parents[1] / "golden" / "families"
TINY = ModelConfig("llama", 61, 32, 2, 4, 2, 8, 64, 64)


def tiny(dtype=torch.float32, base=None):
    generator = torch.Generator().manual_seed(4)
    model = Transformer(TINY)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.4 if p.dim() > 1 else 0.1))
            if p.dim() == 1:
                p += 1
    model = model.to(dtype).eval().requires_grad_(False)
    for path, linear in list(linears(model)) if base else []:
        model.set_submodule(path, QuantizedLinear.of(base, linear.weight))
    return model


@torch.no_grad()
def both(model, padded, columns=4):
    """Hidden states of further tokens by the forward pass, and by the step; the second's caches."""
    text = torch.arange(2 * (6 + columns)).view(2, -1) % model.config.vocab
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, :3] = not padded
    with decode_weights(model, 1000):
        caches = [KVCache(model.config, 2, 6 + columns, dtype=model.embed.weight.dtype)
                  for _ in range(2)]  # fmt: skip
        for cache in caches:
            model(text[:, :6], mask=mask, cache=cache, hidden_only=True)
        step = step_of(model)
        if step is None:
            return None
        assert isinstance(step, Step)
        ways = (lambda t, c: model(t, cache=c, hidden_only=True), step)
        found = [
            torch.cat([way(text[:, t : t + 1], cache) for t in range(6, 6 + columns)], dim=1)
            for way, cache in zip(ways, caches, strict=True)
        ]
    assert caches[0].length == caches[1].length == 6 + columns
    assert torch.equal(caches[0].k[..., :-1, :], caches[1].k[..., :-1, :])
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("dtype", "base"),
    [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "int8"),
     (torch.bfloat16, "Q4_1")],
)  # fmt: skip
def test_the_bits_of_the_forward_pass(dtype, base, padded):
    forward, step = both(tiny(dtype, base), padded)
    assert torch.equal(forward, step)


@pytest.mark.parametrize(("family", "taken"), [
    ("gpt2", True), ("qwen2", True), ("qwen3", True), ("mistral", False), ("llama_yarn", True),
    ("gemma", True), ("gemma2", False), ("gemma3", False), ("gpt_neox", False),
    ("gpt_neox_serial", True), ("qwen2_window", False),
])  # fmt: skip
@pytest.mark.parametrize("padded", [False, True])
def test_families(family, taken, padded):
    found = both(load_model(GOLDEN / family).float().eval(), padded)
    assert (found is not None) == taken
    if found is not None:
        assert torch.equal(*found)


def hooked(model):
    model.blocks[1].mlp.norm.register_forward_hook(lambda *_: None)


def replaced(model):
    model.blocks[0].attn.forward = model.blocks[1].attn.forward


def linear_hooked(model):
    model.blocks[0].mlp.out.down.register_forward_hook(lambda *_: None)


def model_hooked(model):
    lora(model)
    model.register_forward_hook(lambda *_: None)


def bottleneck(model):
    attach(model, Bottleneck())


def prefix(model):
    attach(model, Prefix(prefix_tokens=2))


def mixed(model):
    lora(model)
    model.adapters.adapter_per_row = ("default", None)


def dora(model):
    attach(model, LoRA(rank=2, dora=True))


@pytest.mark.parametrize(
    "change", [hooked, replaced, linear_hooked, model_hooked, bottleneck, prefix, mixed, dora]
)
def test_what_hangs_on_the_model_is_not_passed_by(change):
    model = tiny()
    change(model)
    assert both(model, False) is None


def lora(model):
    attach(model, LoRA(rank=2, targets=("q", "v", "down")))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".B"):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("dtype", "base"), [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, "int8")]
)
def test_lora_comes_this_way(dtype, base, padded):
    model = tiny(dtype, base)
    without = both(model, padded)
    lora(model)
    found = both(model, padded)
    assert torch.equal(*found)
    assert not torch.equal(found[1], without[1])
    with disabled(model):
        assert torch.equal(both(model, padded)[1], without[1])


def test_not_before_everything_is_ready():
    model = tiny()
    assert step_of(model) is None
    with torch.no_grad(), decode_weights(model, 1000):
        assert step_of(model) is None


def test_decoding_takes_it(monkeypatch):
    model, calls, honest = tiny(), [], Step.__call__
    with using("reference"):
        expected = decode(model, [[1, 2], [3]], max_new_tokens=6)
    monkeypatch.setattr(Step, "__call__", lambda *a: calls.append(1) or honest(*a))
    assert decode(model, [[1, 2], [3]], max_new_tokens=6) == expected
    assert len(calls) == 5
