"""LoRA by property: what it starts as, what it trains, what it leaves alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.peft.adapters import disabled, trainable
from minift.peft.lora import LoRA, count
from minift.peft.merge import merge
from minift.peft.methods import attach
from minift.peft.slots import changes

BASE = Path(__file__).parents[1] / "golden" / "llama_gqa"
TOKENS = torch.arange(14).view(2, 7)


def model(dtype=torch.float32):
    return load_model(BASE, dtype=dtype)


def perturb(adapted):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _, _, change in changes(adapted):
            change.B.copy_(torch.randn(change.B.shape, generator=generator) * 0.1)
    return adapted


@pytest.mark.parametrize("targets", [("all",), ("attention",), ("mlp",), ("q", "v"), ("down",)])
def test_starts_as_the_base_and_trains_the_closed_form_count(targets):
    plain, config = model(), LoRA(rank=3, targets=targets)
    adapted = attach(model(), config)
    with torch.no_grad():
        assert torch.equal(adapted(TOKENS), plain(TOKENS))
    assert sum(p.numel() for p in trainable(adapted).values()) == count(adapted, config)


def test_the_count_by_hand():
    # q 24x24, k and v 24x12, o 24x24, gate and up 24x40, down 40x24; three layers, rank 3
    one_layer = 3 * ((24 + 24) + 2 * (24 + 12) + (24 + 24) + 3 * (24 + 40))
    assert count(model(), LoRA(rank=3)) == 3 * one_layer


def test_disabled_is_the_base_bit_for_bit():
    plain, adapted = model()(TOKENS), perturb(attach(model(), LoRA()))
    assert not torch.equal(adapted(TOKENS), plain)
    with disabled(adapted):
        assert torch.equal(adapted(TOKENS), plain)
    assert not torch.equal(adapted(TOKENS), plain)


def test_training_leaves_the_base_bit_identical():
    adapted = attach(model(), LoRA(rank=2))
    before = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW(trainable(adapted).values(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(TOKENS).square().mean().backward()
        optimizer.step()
    after = dict(adapted.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(after[name] is not None for name in trainable(adapted))


def test_merged_equals_unmerged_and_shares_what_did_not_change():
    adapted = perturb(attach(model(torch.float64), LoRA(rank=2, alpha=5.0, targets=("q", "down"))))
    merged = merge(adapted)
    torch.testing.assert_close(merged(TOKENS), adapted(TOKENS), rtol=0, atol=1e-12)
    same = merged.blocks[0].attn.qkv.k.weight.data_ptr()
    assert same == adapted.blocks[0].attn.qkv.k.weight.data_ptr()
    assert next(changes(merged), None) is None


def test_rslora_scales_by_the_root_of_the_rank():
    assert LoRA(rank=16, alpha=8.0).scale_at("blocks.0.attn.qkv.q") == 0.5
    assert LoRA(rank=16, alpha=8.0, rslora=True).scale_at("blocks.0.attn.qkv.q") == 2.0


def test_trainables_are_float32_on_a_bf16_base():
    adapted = attach(model(torch.bfloat16), LoRA(rank=2))
    assert {p.dtype for p in trainable(adapted).values()} == {torch.float32}
    assert adapted(TOKENS).dtype == torch.bfloat16


def test_dropout_acts_in_training_only():
    adapted = perturb(attach(model(), LoRA(dropout=0.5)))
    adapted.eval()
    assert torch.equal(adapted(TOKENS), adapted(TOKENS))
    adapted.train()
    assert not torch.equal(adapted(TOKENS), adapted(TOKENS))


def test_the_same_seed_gives_the_same_start():
    one, other = (attach(model(), LoRA(), seed=s) for s in (4, 4))
    starts = [{path: change.A for path, _, change in changes(m)} for m in (one, other)]
    assert len(starts[0]) == 7 * len(one.blocks)
    assert all(torch.equal(A, starts[1][path]) for path, A in starts[0].items())


def test_a_copy_carries_its_adapter():
    adapted = perturb(attach(model(), LoRA()))
    assert torch.equal(copy.deepcopy(adapted)(TOKENS), adapted(TOKENS))


@pytest.mark.parametrize("fields", [
    {"rank": 0}, {"rank": 2.0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()},
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        LoRA(**fields)


@pytest.mark.parametrize(("config", "text"), [
    (LoRA(rank=13), "at most 12, the size of blocks.0.attn.qkv.k"),
    (LoRA(targets=("qq",)), 'found "qq".*nearest: q'),
])  # fmt: skip
def test_what_the_model_cannot_take_is_refused_and_leaves_it_alone(config, text):
    plain = model()
    with pytest.raises(ConfigError, match=text):
        attach(plain, config)
    assert all(p.requires_grad for p in plain.parameters())


def test_attaching_twice_is_refused():
    with pytest.raises(ConfigError, match="already"):
        attach(attach(model(), LoRA()), LoRA())


def test_pissa_on_bf16_is_no_difference_of_rounded_products():
    """The change is small, the two products that it is the difference of are not."""
    wide = attach(model(), LoRA(rank=8, lora_init="pissa"))
    with torch.no_grad():
        for _, _, change in changes(wide):
            change.B += 1e-3 * torch.sin(torch.arange(change.B.numel()).view(change.B.shape))
    narrow = copy.deepcopy(wide).bfloat16()
    for (_, _, change), (_, _, twin) in zip(changes(narrow), changes(wide), strict=True):
        for name, parameter in change.named_parameters():
            parameter.data = twin.get_parameter(name).data.clone()
        change.A0, change.B0 = twin.A0, twin.B0
    x = torch.randn(64, 24, generator=torch.Generator().manual_seed(1)).bfloat16()
    for form, base in ((narrow, disabled(narrow)), (wide, disabled(wide))):
        group, given = form.blocks[0].mlp.hidden, x.to(form.embed.weight.dtype)
        with torch.no_grad():
            changed = group(given)[0].float()
            with base:
                changed -= group(given)[0].float()
        if form is narrow:
            found = changed
    assert (found - changed).norm() < (2**-8) * group(x.float())[0].norm()
    assert (changed.norm()) > 0
