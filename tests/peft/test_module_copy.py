"""A copy stands in for a module: its own numbers, the base's untouched (PEFT's: real_adapters)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from minift.checkpoints.open import load_model
from minift.model.norm import LayerNorm, RMSNorm
from minift.peft.adapters import detach, disabled, use
from minift.peft.lora import LoRA
from minift.peft.merge import merge
from minift.peft.methods import attach
from minift.peft.module_copy import Copy
from minift.peft.slots import changes, insert

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = torch.tensor([[5, 9, 2, 5]])


@pytest.mark.parametrize("module", [
    nn.Linear(3, 3), nn.Linear(3, 3, bias=False), LayerNorm(3, 1e-5), RMSNorm(3, 1e-5),
])  # fmt: skip
def test_it_is_the_module_with_other_weights(module):
    x, own = torch.randn(2, 3), torch.randn_like(module.weight)
    before = module(x)
    found = Copy({"weight": own}, is_trainable=True).stand_in(module)(x)
    assert torch.equal(module(x), before)
    with torch.no_grad():
        module.weight.copy_(own)
    torch.testing.assert_close(found, module(x))


def test_under_a_change_at_a_linear_a_norm_and_the_table():
    base = load_model(GOLDEN / "families" / "gpt2", dtype=torch.float64).eval()
    plain = base(TOKENS)
    generator = torch.Generator().manual_seed(0)
    adapted = attach(base, LoRA(rank=2, targets=("q", "embed")))
    for path, leaf in (("blocks.0.attn.qkv.q", "bias"), ("blocks.1.mlp.norm", "weight"),
                       ("embed", "weight"), ("norm", "bias")):  # fmt: skip
        value = base.get_submodule(path).get_parameter(leaf).detach()
        noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        insert(adapted, path, "default/own", Copy({leaf: value + 0.1 * noise}, is_trainable=True))
    use(adapted, "default")
    with torch.no_grad():
        for _, _, change in changes(adapted):
            for parameter in change.parameters():
                parameter.add_(0.05)
    out = adapted(TOKENS)
    assert (out - plain).abs().max() > 0.05
    torch.testing.assert_close(merge(adapted)(TOKENS), out, rtol=0, atol=1e-12)
    out.sum().backward()
    assert all(p.grad is not None for _, _, c in changes(adapted) for p in c.parameters())
    with disabled(adapted):
        assert torch.equal(adapted(TOKENS), plain)
    assert torch.equal(detach(adapted)(TOKENS), plain)
