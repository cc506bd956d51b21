"""Exporting: every form is read back, and the numbers say what was lost."""

from __future__ import annotations

import math

import pytest
import torch

from minift.checkpoints.open import load
from minift.errors import ConfigError
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.export import differences, export
from minift.peft.lora import LoRA
from minift.peft.merge import merge
from minift.peft.methods import attach
from minift.peft.places import changes


@pytest.fixture
def model(tiny_tokenizer):
    config = ModelConfig(
        family="llama", vocab=tiny_tokenizer.vocab_size, dim=64, layers=2, heads=4, kv_heads=2,
        head_dim=16, ff=96, context=128, tied=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config, "small")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.3)
    return model.train()


@pytest.fixture
def adapted(model):
    attach(model, LoRA(rank=2, rslora=True))
    with torch.no_grad():
        for _, _, change in changes(model):
            change.B.normal_(std=0.1)
    return model


@pytest.mark.parametrize(("to", "dtype"), [("hf", None), ("hf", "F32"), ("gguf", "F32")])
def test_exact_forms_lose_nothing(model, tiny_tokenizer, to, dtype, tmp_path):
    done = export(model, tiny_tokenizer, tmp_path / "x", to=to, dtype=dtype)
    assert (done.logit, done.kl, done.same, done.texts) == (0.0, 0.0, 3, 3)
    assert done.bytes > 4 * sum(p.numel() for p in model.parameters())
    assert model.training


def test_narrower_kinds_lose_more(model, tiny_tokenizer, tmp_path):
    found = [
        export(model, tiny_tokenizer, tmp_path / f"{kind}.gguf", dtype=kind)
        for kind in ("F16", "BF16", "Q8_0", "Q4_0")
    ]
    assert [done.kind for done in found] == ["F16", "BF16", "Q8_0", "Q4_0"]
    errors = [done.logit for done in found]
    assert errors == sorted(errors)
    assert 0 < errors[0] < 0.05
    assert [done.bytes for done in found] == [p.path.stat().st_size for p in found]
    assert export(model, tiny_tokenizer, tmp_path / "bf", to="hf", dtype="BF16").logit > 0
    assert load(tmp_path / "bf", dtype="bf16")[0].embed.weight.dtype == torch.bfloat16
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_an_adapter_is_merged_and_stays(adapted, tiny_tokenizer, to, tmp_path):
    done = export(adapted, tiny_tokenizer, tmp_path / "x", to=to, dtype="F32")
    assert 0 < done.logit < 1e-3
    assert any(True for _ in changes(adapted))
    again, _ = load(tmp_path / "x")
    for one, two in zip(merge(adapted).parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_adapter_alone(adapted, tiny_tokenizer, tmp_path):
    before = {path: (c.A.clone(), c.B.clone()) for path, _, c in changes(adapted)}
    exact = export(adapted, tiny_tokenizer, tmp_path / "a.gguf", to="gguf-lora")
    assert (exact.kind, exact.logit, exact.same) == ("F32", 0.0, 3)
    rounded = export(adapted, tiny_tokenizer, tmp_path / "b.gguf", to="gguf-lora", dtype="F16")
    assert 0 < rounded.logit < 1
    assert rounded.bytes < exact.bytes
    for path, _, change in changes(adapted):
        assert torch.equal(change.A, before[path][0])
        assert torch.equal(change.B, before[path][1])
        assert change.A.requires_grad


@pytest.mark.parametrize(("options", "text"), [
    ({"to": "onnx"}, 'to: found "onnx", allowed hf, gguf, gguf-lora'),
    ({"to": "hf", "dtype": "Q8_0"}, 'dtype: found "Q8_0", allowed F32, BF16 for hf'),
    ({"dtype": "Q6_K"}, "allowed F32, F16, BF16, Q8_0, Q4_0, Q4_1 for gguf"),
    ({"to": "gguf-lora"}, "nothing is attached"),
])  # fmt: skip
def test_what_cannot_be_is_refused(model, tiny_tokenizer, options, text, tmp_path):
    with pytest.raises(ConfigError, match=text):
        export(model, tiny_tokenizer, tmp_path / "x", **options)
    assert not list(tmp_path.iterdir())


def test_differences_by_hand():
    """Two positions: one equal, one with probabilities (1/2, 1/2) against (1/4, 3/4)."""
    one, other = torch.zeros(2, 2), torch.zeros(2, 2)
    other[1, 1] = math.log(3)
    logit, kl = differences([one], [other])
    assert logit == pytest.approx(math.log(3))
    assert kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)
