"""A label head on models of every family: what is shared, what is new, what other programs load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.families import FAMILIES
from minift.checkpoints.labels import labelled, with_labels
from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.kernels.quantized.linear import quantized
from minift.peft.lora import LoRA
from minift.peft.methods import attach

GOLDEN = Path(__file__).parents[1] / "golden" / "families"
NAMES = ("bad", "fair", "good")
TOKENS = torch.tensor([[3, 4, 5, 6, 0, 0], [7, 8, 9, 10, 11, 12]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6]).bool()


def scores(model, tokens=TOKENS, mask=MASK):
    with torch.no_grad():
        return model.eval()(tokens, mask=mask)


def test_a_decoder_scores_its_last_real_token():
    base = load_model(GOLDEN / "qwen2", dtype=torch.float64)
    model = with_labels(base, NAMES)
    assert model.config.labels == NAMES
    assert not model.config.tied
    with torch.no_grad():
        hidden = base.eval()(TOKENS, mask=MASK, hidden_only=True)
        last = torch.stack([hidden[0, 3], hidden[1, 5]])
        expected = last.float() @ model.head.out.weight.T
    torch.testing.assert_close(scores(model), expected)
    assert model.head.out.bias is None


def test_an_encoder_scores_its_first_token_through_the_pooler():
    base = load_model(GOLDEN / "bert_body")
    assert base.pooler is not None
    model = with_labels(base, NAMES)
    with torch.no_grad():
        hidden = base.eval()(TOKENS, mask=MASK, hidden_only=True)
        expected = model.head.out(torch.tanh(base.pooler(hidden[:, 0])))
    torch.testing.assert_close(scores(model), expected)
    assert bool((model.head.out.bias == 0).all())


@pytest.mark.parametrize("base", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["qwen2", "bert_body"])
def test_a_quantised_body_keeps_what_it_stores(name, base):
    stored = load_model(GOLDEN / name, base=base)
    dense = load_model(GOLDEN / name)
    with torch.no_grad():
        for path, linear in quantized(stored):
            dense.get_parameter(f"{path}.weight").copy_(linear.weight)
    model = with_labels(stored, NAMES)
    assert [path for path, _ in quantized(model)] == [path for path, _ in quantized(stored)]
    torch.testing.assert_close(scores(model), scores(with_labels(dense, NAMES)))


def test_the_body_is_shared_and_the_head_is_drawn_in_float32():
    base = load_model(GOLDEN / "qwen2", dtype=torch.bfloat16)
    one, again, other = (with_labels(base, NAMES, seed=seed) for seed in (1, 1, 2))
    assert one.embed.weight is base.embed.weight
    assert one.blocks[0].attn.qkv.q.weight is base.blocks[0].attn.qkv.q.weight
    assert one.head.out.weight.dtype == torch.float32
    assert torch.equal(one.head.out.weight, again.head.out.weight)
    assert not torch.equal(one.head.out.weight, other.head.out.weight)
    assert one.head.out.weight.detach().std().item() == pytest.approx(0.02, rel=0.3)
    assert scores(one).dtype == torch.float32  # on a body of bf16
    assert one.source == base.source


@pytest.mark.parametrize("name", ["roberta", "distilbert"])
def test_a_classifier_with_a_dense_layer_of_its_own_gets_one(name):
    base = load_model(GOLDEN / name)  # a masked-word model: no pooler
    assert base.pooler is None
    model = with_labels(base, NAMES)
    assert model.pooler is not None
    assert model.pooler.weight.detach().std().item() == pytest.approx(0.02, rel=0.3)
    assert scores(model).shape == (2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_have_labels(family):
    folder = {"gemma3_text": "gemma3", "llama": "llama_linear"}.get(family, family)
    config = labelled(load_model(GOLDEN / folder).config, NAMES)
    assert (config.head, config.labels) == ("label", NAMES)
    assert config.pool == ("last" if config.causal else "first")


def test_a_model_with_these_labels_keeps_its_head():
    model = load_model(GOLDEN / "bert_labels")
    assert with_labels(model, model.config.labels) is model
    other = with_labels(model, NAMES)
    assert other.head.out.weight.shape[0] == 3
    assert model.head.out.weight.shape[0] == len(model.config.labels)


@pytest.mark.parametrize("labels", ["good", [], ["a", ""], ["a", "a"], ["a", 1]])
def test_labels_that_are_none(labels):
    with pytest.raises(ConfigError, match="labels: found"):
        with_labels(load_model(GOLDEN / "qwen2"), labels)


def test_the_adapter_comes_after_the_head():
    model = attach(load_model(GOLDEN / "qwen2"), LoRA(rank=2))
    with pytest.raises(ConfigError, match="it comes after the head"):
        with_labels(model, NAMES)
