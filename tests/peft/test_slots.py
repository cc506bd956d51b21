"""Where changes hang: the places by name, slots, and what is asked when."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.kernels.attention import dispatch
from minift.kernels.choice import using
from minift.peft.adapters import disabled, use
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.peft.slots import (
    adapters_of,
    changes,
    get_or_create_adapters,
    groups,
    insert,
    linears,
    members,
    slots,
)

BASE = Path(__file__).parents[1] / "golden" / "llama_gqa"
TOKENS = torch.arange(14).view(2, 7)


class Double(nn.Module):
    """A change that is no LoRA."""

    def forward(self, linear, x):
        return 2 * linear(x)


class Skipped(nn.Module):
    """A sublayer that adds nothing to the residual stream."""

    def forward(self, sublayer, x, shared):
        return torch.zeros_like(x)


class Shifted(nn.Module):
    """Asked after the embedding, a norm or the head."""

    def forward(self, module, inputs, out):
        return out + 1


def model():
    return load_model(BASE, dtype=torch.float64)


def hung(path, change, name="default"):
    """A model with one change, whose adapter is active."""
    changed = model()
    insert(changed, path, name, change)
    adapters = get_or_create_adapters(changed)
    adapters.configs[name], adapters.is_trainable[name] = "a test's", True
    adapters.switch.active = name
    return changed


def test_members_come_in_the_order_of_the_model():
    paths = [path for path, _ in members(model(), ("down", "q"))]
    assert paths[:3] == ["blocks.0.attn.qkv.q", "blocks.0.mlp.out.down", "blocks.1.attn.qkv.q"]
    assert len(paths) == 2 * len(model().blocks)
    assert len(list(members(model(), ("all",)))) == 7 * len(model().blocks)


def test_a_whole_path_names_one_linear_and_whole_modules_are_no_members():
    paths = [path for path, _ in members(model(), ("blocks.1.attn.qkv.k", "embed", "head"))]
    assert paths == ["blocks.1.attn.qkv.k"]


def test_every_linear_is_in_one_group():
    plain = model()
    assert len(list(groups(plain))) == 4 * len(plain.blocks)
    inside = {id(m) for m in plain.blocks.modules() if isinstance(m, nn.Linear)}
    assert {id(linear) for _, linear in linears(plain)} == inside


def test_any_change_may_hang_on_a_member_and_names_stay():
    changed, plain = hung("blocks.1.mlp.out.down", Double()), model()
    with torch.no_grad():
        plain.blocks[1].mlp.out.down.weight.mul_(2)
    torch.testing.assert_close(changed(TOKENS), plain(TOKENS), rtol=0, atol=1e-12)
    assert dict(changed.named_parameters()).keys() == dict(plain.named_parameters()).keys()


def test_a_sublayer_a_norm_the_embedding_and_the_head_may_change_too():
    skipped, plain = hung("blocks.0.mlp", Skipped()), model()
    with torch.no_grad():
        plain.blocks[0].mlp.out.down.weight.zero_()
    torch.testing.assert_close(skipped(TOKENS), plain(TOKENS), rtol=0, atol=1e-12)
    for path in ("embed", "blocks.2.attn.norm", "head"):
        changed, plain = hung(path, Shifted()), model()
        plain.get_submodule(path).register_forward_hook(lambda m, args, out: out + 1)
        assert torch.equal(changed(TOKENS), plain(TOKENS))
        assert not torch.equal(changed(TOKENS), model()(TOKENS))
        with disabled(changed):
            assert torch.equal(changed(TOKENS), model()(TOKENS))


def test_one_change_a_member_and_adapter():
    changed = hung("blocks.0.attn.qkv.v", Double())
    with pytest.raises(ConfigError, match="has a change of default already"):
        insert(changed, "blocks.0.attn.qkv.v", "default", Double())
    insert(changed, "blocks.0.attn.qkv.v", "other", Double())
    (slot,) = [slot for _, _, slot in slots(changed)]
    assert sorted(slot) == ["default", "other"]


def test_changes_are_the_active_ones_or_those_asked_for():
    changed, other = hung("blocks.0.attn.qkv.v", Double()), Shifted()
    insert(changed, "embed", "other", other)
    assert [path for path, _, _ in changes(changed)] == ["blocks.0.attn.qkv.v"]
    assert list(changes(changed, "other")) == [("embed", changed.embed, other)]
    assert list(changes(changed, "nobody")) == []
    assert list(changes(model())) == []
    assert adapters_of(model()) is None


def test_disabled_nests_and_comes_back_after_an_error():
    changed, plain = hung("blocks.0.attn.qkv.q", Double()), model()(TOKENS)
    with disabled(changed):
        with disabled(changed):
            assert torch.equal(changed(TOKENS), plain)
        assert torch.equal(changed(TOKENS), plain)
    with pytest.raises(IndexError), disabled(changed):
        changed(torch.tensor([[10**6]]))
    assert not torch.equal(changed(TOKENS), plain)


def nodes(y):
    """The names of the functions that made a tensor."""
    found, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [following for following, _ in node.next_functions]
    return {type(node).__name__ for node in found}


FUSED = {"GroupBackward", "MLPBackward", "CausalBackward", "RMSNormBackward", "RotateBackward",
         "LinearCrossEntropyBackward"}  # fmt: skip


def loss(changed):
    hidden = changed(TOKENS, hidden_only=True)
    return changed.nll(hidden.flatten(0, 1), TOKENS.flatten())


def test_thin_sums_reach_the_kernels_and_other_changes_do_not(monkeypatch):
    monkeypatch.setattr(dispatch, "SHORT", 0)  # longer rows than these go through blocks
    changed = attach(model(), LoRA(rank=2))
    assert nodes(loss(changed)) >= FUSED
    with using("reference"):
        assert not nodes(loss(changed)) & FUSED
    attach(changed, LoRA(rank=2, dora=True), name="dora")
    assert not nodes(loss(changed)) & {"GroupBackward", "MLPBackward"}
    assert nodes(loss(use(changed, "default"))) >= FUSED


def test_a_hook_on_a_group_is_still_called():
    changed, seen = attach(model(), LoRA(rank=2)), []
    changed.blocks[0].mlp.hidden.register_forward_hook(lambda *parts: seen.append(1))
    changed.blocks[1].attn.qkv.q.register_forward_hook(lambda *parts: seen.append(2))
    plain = loss(attach(model(), LoRA(rank=2)))
    torch.testing.assert_close(loss(changed), plain)
    assert seen == [1, 2]
