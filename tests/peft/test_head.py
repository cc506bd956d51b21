"""Label heads of their own: each adapter has one, and what belongs to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.interop.adapter_files import adapter_files, load_adapter, save_adapter
from minift.interop.head import modules, theirs
from minift.peft.adapters import trainable, use
from minift.peft.head import own_head
from minift.peft.lora import LoRA
from minift.peft.merge import merge
from minift.peft.methods import attach

FAMILIES = Path(__file__).parents[1] / "golden" / "families"
TOKENS = torch.arange(14).view(2, 7)
# What PEFT saves of each, and the pooler where the family keeps it inside its classifier.
HEADS = {
    "bert_labels": (["classifier"], {"out.weight", "out.bias"}, False),
    "roberta_labels": (["classifier"], {"out.weight", "out.bias"}, True),
    "distilbert_labels": (["classifier", "pre_classifier"], {"out.weight", "out.bias"}, True),
    "gpt2_labels": (["score"], {"out.weight"}, False),
    "llama_labels": (["score"], {"out.weight"}, False),
}


def model(name, dtype=torch.float32):
    return load_model(FAMILIES / name, dtype=dtype)


@pytest.mark.parametrize("name", HEADS)
def test_what_belongs_to_the_head(name):
    adapted = attach(model(name), LoRA(rank=1, targets=("q",)))
    saved, leaves, pooler = HEADS[name]
    own = own_head(adapted, "default")
    assert modules(adapted, "default") == saved
    assert {key for key, _ in own.head.named_parameters()} == leaves
    assert (own.pooler is not None) == pooler
    assert len(theirs(adapted)) == len(leaves) + 2 * pooler
    assert all(p.requires_grad for p in own.parameters())


@pytest.mark.parametrize("name", HEADS)
def test_each_adapter_has_its_own_and_merging_takes_it_along(name, tmp_path):
    adapted = model(name, torch.float64)
    plain = adapted(TOKENS)
    for key in "ab":
        attach(adapted, LoRA(rank=1, targets=("q",)), name=key)
    with torch.no_grad():
        for parameter in own_head(adapted, "a").parameters():
            parameter.mul_(2)
    assert torch.equal(adapted(TOKENS), plain)
    changed = use(adapted, "a")(TOKENS)
    assert not torch.allclose(changed, plain)
    merged = merge(adapted)
    torch.testing.assert_close(merged(TOKENS), changed, rtol=0, atol=1e-12)
    assert torch.equal(use(adapted, None)(TOKENS), plain)
    save_adapter(adapted, tmp_path / "a", name="a")
    again = load_adapter(model(name, torch.float64), tmp_path / "a", trainable=True)
    torch.testing.assert_close(again(TOKENS), changed, rtol=0, atol=1e-12)


def test_it_is_trained_in_float32_on_a_bf16_base():
    adapted = attach(model("roberta_labels", torch.bfloat16), LoRA(rank=1))
    assert {p.dtype for p in trainable(adapted).values()} == {torch.float32}
    assert adapted(TOKENS).dtype == torch.float32
    assert merge(adapted)(TOKENS).dtype == torch.bfloat16


def test_a_language_head_is_the_bases():
    adapted = attach(model("gpt2"), LoRA(rank=1))
    assert own_head(adapted, "default") is None
    assert modules(adapted, "default") is None
    assert adapter_files(adapted, "default").keys() == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
