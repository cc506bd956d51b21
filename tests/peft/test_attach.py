"""What the methods share: finding, hanging, switching off, merging."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.peft.attach import disabled, freeze, hang, members, merge, trainable

BASE = Path(__file__).parents[1] / "golden" / "llama_gqa"
TOKENS = torch.arange(14).view(2, 7)


class Double(nn.Module):
    """A change that is no LoRA: the group runs it member by member."""

    def forward(self, linear, x):
        return 2 * linear(x)


class Doubled(Double):
    def merged(self, linear):
        return 2 * linear.weight


def model():
    return load_model(BASE, dtype=torch.float64)


def test_members_come_in_the_order_of_the_model():
    paths = [path for path, _ in members(model(), ("down", "q"))]
    assert paths[:3] == ["blocks.0.attn.qkv.q", "blocks.0.mlp.out.down", "blocks.1.attn.qkv.q"]
    assert len(paths) == 2 * len(model().blocks)
    assert len(list(members(model(), ("all",)))) == 7 * len(model().blocks)


def test_any_change_may_hang_on_a_member_and_names_stay():
    changed, plain = model(), model()
    hang(changed, "blocks.1.mlp.out.down", Double())
    with torch.no_grad():
        plain.blocks[1].mlp.out.down.weight.mul_(2)
    torch.testing.assert_close(changed(TOKENS), plain(TOKENS), rtol=0, atol=1e-12)
    assert dict(changed.named_parameters()).keys() == dict(plain.named_parameters()).keys()


def test_one_change_a_member():
    changed = model()
    hang(changed, "blocks.0.attn.qkv.v", Double())
    with pytest.raises(ConfigError, match="has a change already"):
        hang(changed, "blocks.0.attn.qkv.v", Double())


def test_disabled_nests_and_comes_back_after_an_error():
    changed, plain = model(), model()(TOKENS)
    hang(changed, "blocks.0.attn.qkv.q", Double())
    with disabled(changed):
        with disabled(changed):
            assert torch.equal(changed(TOKENS), plain)
        assert torch.equal(changed(TOKENS), plain)
    with pytest.raises(IndexError), disabled(changed):
        changed(torch.tensor([[10**6]]))
    assert not torch.equal(changed(TOKENS), plain)


def test_merge_says_what_cannot_become_a_weight():
    changed = model()
    with pytest.raises(ConfigError, match="nothing is attached"):
        merge(changed)
    hang(changed, "blocks.0.attn.qkv.q", Double())
    with pytest.raises(ConfigError, match=r"Double at blocks\.0\.attn\.qkv\.q cannot"):
        merge(changed)


def test_merge_leaves_the_original_as_it_was():
    changed = model()
    hang(changed, "blocks.0.attn.qkv.q", Doubled())
    before = changed(TOKENS)
    merged = merge(changed)
    torch.testing.assert_close(merged(TOKENS), before, rtol=0, atol=1e-12)
    assert torch.equal(changed(TOKENS), before)


def test_trainable_is_what_requires_a_gradient():
    frozen = model()
    freeze(frozen)
    assert trainable(frozen) == {}
    frozen.norm.weight.requires_grad_(True)
    assert list(trainable(frozen)) == ["norm.weight"]
