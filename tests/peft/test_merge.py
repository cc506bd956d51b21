"""Merging: a new model, what cannot become weights, what rounding costs; sums of adapters."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.peft.adapters import active, names, use
from minift.peft.bitfit import BitFit
from minift.peft.ia3 import IA3
from minift.peft.lora import LoRA
from minift.peft.merge import apart, combine, merge, merge_error
from minift.peft.methods import attach
from minift.peft.prompt import Prompt
from minift.peft.slots import changes, get_or_create_adapters, insert

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENS = torch.arange(14).view(2, 7)


class Double(nn.Module):
    """A change that does not say how to become a weight."""

    def forward(self, linear, x):
        return 2 * linear(x)


class Doubled(Double):
    def merged(self, linear):
        return {"weight": 2 * linear.weight}


def model(name="llama_gqa", dtype=torch.float64):
    return load_model(GOLDEN / name, dtype=dtype)


def hung(change):
    changed = model()
    insert(changed, "blocks.0.attn.qkv.q", "default", change)
    adapters = get_or_create_adapters(changed)
    adapters.configs["default"], adapters.is_trainable["default"] = change, True
    adapters.switch.active = "default"
    return changed


def perturb(adapted, name=None, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, _, change in changes(adapted, name):
            for parameter in change.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(0.1 * noise.to(parameter))
    return adapted


def test_merge_says_what_cannot_become_a_weight():
    with pytest.raises(ConfigError, match="nothing is attached"):
        merge(model())
    with pytest.raises(ConfigError, match=r"Double at blocks\.0\.attn\.qkv\.q cannot"):
        merge(hung(Double()))
    with pytest.raises(ConfigError, match="Prompt cannot become weights: its tokens are input"):
        merge(attach(model(), Prompt(3)))


def test_merge_leaves_the_original_as_it_was():
    changed = hung(Doubled())
    before = changed(TOKENS)
    merged = merge(changed)
    torch.testing.assert_close(merged(TOKENS), before, rtol=0, atol=1e-12)
    assert torch.equal(changed(TOKENS), before)


def test_a_bias_that_the_family_lacks_is_added():
    adapted = perturb(attach(model(), BitFit()))
    merged = merge(adapted)
    torch.testing.assert_close(merged(TOKENS), adapted(TOKENS), rtol=0, atol=1e-12)
    assert merged.config.qkv_bias
    assert not adapted.config.qkv_bias
    scaled = merge(perturb(attach(model("llama_biased"), IA3())))
    assert scaled.config == model("llama_biased").config


def test_a_tied_matrix_is_untied_where_one_side_changes():
    for target in ("embed", "head"):
        adapted = perturb(attach(model("llama_biased"), LoRA(rank=2, targets=(target,))))
        merged = merge(adapted)
        torch.testing.assert_close(merged(TOKENS), adapted(TOKENS), rtol=0, atol=1e-11)
        assert not merged.config.tied
        assert not torch.equal(merged.embed.weight, merged.head.weight)


def test_merging_in_bf16_says_what_rounding_cost():
    adapted = perturb(attach(model(dtype=torch.bfloat16), LoRA(rank=2)), seed=3)
    merged = merge(adapted)
    error = merge_error(adapted, merged, torch.arange(12).view(1, 12))
    assert 0 < error.logit < 1
    assert error.kl > 0
    assert error.tokens == 12
    assert merged.blocks[0].attn.qkv.q.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    adapted = perturb(attach(model(dtype=torch.float32), LoRA(rank=2, targets=("q",))))
    with torch.no_grad():
        dict(adapted.named_parameters())["blocks.1.mlp.out.down.weight"][0, 0] = value
    with pytest.raises(
        ConfigError, match=r'merge: tensor "blocks\.1\.mlp\.out\.down\.weight" holds'
    ):
        merge(adapted)
    adapted = perturb(attach(model(), LoRA(rank=2, targets=("q",))))
    for _, _, change in changes(adapted):
        change.B.data[1, 1] = float("nan")
    with pytest.raises(ConfigError, match=r'merge: tensor "blocks\.0\.attn\.qkv\.q\.weight" holds'):
        merge(adapted)


def test_a_change_too_large_for_the_weights_is_refused():
    adapted = perturb(attach(model(dtype=torch.float32), LoRA(rank=2, targets=("v",))))
    for _, _, change in changes(adapted):
        change.A.data.fill_(1e30)
        change.B.data.fill_(1e30)
    with pytest.raises(ConfigError, match=r"attn\.qkv\.v\.weight"):
        merge(adapted)


def test_an_adapter_that_is_not_active_does_not_matter():
    adapted = perturb(attach(model(), LoRA(rank=2)))
    attach(adapted, LoRA(rank=2), name="other")
    for _, _, change in changes(adapted, "other"):
        change.A.data.fill_(float("nan"))
    use(adapted, "default")
    merge(adapted)


def test_the_error_of_a_model_without_finite_numbers_is_nan():
    broken = model()
    broken.norm.weight.data.fill_(float("nan"))
    for one, other in ((model(), broken), (broken, model()), (broken, broken)):
        error = merge_error(one, other, TOKENS)
        assert math.isnan(error.kl)
        assert math.isnan(error.logit)


def test_hidden_states_have_no_kl():
    one, other = torch.zeros(1, 2, 3), torch.full((1, 2, 3), 0.5)
    assert apart(one, other, "none") == (0.5, None)
    assert apart(one, other, "label") == (0.5, 0.0)


def test_combined_is_the_weighted_sum_of_the_changes():
    """One linear of one layer, by hand: W + Σ w s B A."""
    adapted = model()
    attach(adapted, LoRA(rank=2, alpha=6, targets=("q", "down")), name="a")
    attach(adapted, LoRA(rank=3, alpha=3, targets=("q", "k"), rslora=True), name="b", seed=1)
    perturb(perturb(adapted, "a", 1), "b", 2)
    combine(adapted, {"a": 0.25, "b": -2.0}, name="sum")
    assert (names(adapted), active(adapted)) == (["a", "b", "sum"], "sum")
    one, other = ({p: c for p, _, c in changes(adapted, name)} for name in "ab")
    merged = dict(merge(adapted).named_parameters())
    for path, linear, change in changes(adapted, "sum"):
        expected = linear.weight.clone()
        if path in one:
            expected += 0.25 * 3 * one[path].B @ one[path].A
        if path in other:
            expected += -2.0 * 3**0.5 * other[path].B @ other[path].A
        torch.testing.assert_close(merged[f"{path}.weight"], expected, rtol=0, atol=1e-12)
        assert change.A.shape[0] == 2 * (path in one) + 3 * (path in other)
    assert {path for path, _, _ in changes(adapted, "sum")} == one.keys() | other.keys()


@pytest.mark.parametrize(("config", "text"), [
    (IA3(), 'found "a", a IA3'),
    (LoRA(rank=2, dora=True), 'found "a", a DoRA'),
    (LoRA(rank=2, lora_init="pissa"), "allowed plain LoRA"),
])  # fmt: skip
def test_only_plain_lora_is_combined(config, text):
    adapted = attach(model(), config, name="a")
    with pytest.raises(ConfigError, match=text):
        combine(adapted, {"a": 1.0})
    with pytest.raises(ConfigError, match='found no adapter "b", allowed a'):
        combine(adapted, {"b": 1.0})
    with pytest.raises(ConfigError, match="found no adapters"):
        combine(adapted, {})
    assert names(adapted) == ["a"]
