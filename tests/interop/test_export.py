"""Exporting: every form is read back, and the numbers say what was lost."""

from __future__ import annotations

import math

import pytest
import torch

from minift.checkpoints.open import load
from minift.errors import ConfigError
from minift.interop.export import NEW_TOKENS, answers, export, parts, probes
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.lora import LoRA
from minift.peft.merge import apart, merge
from minift.peft.methods import attach
from minift.peft.slots import changes
from minift.tokenizers.wordpiece import WordPiece


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
    logit, kl = apart(one, other, "lm")
    assert logit == pytest.approx(math.log(3))
    assert kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)


WORDS = WordPiece.from_vocab("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nof\nis\n", None, "vocab.txt")
HEADS = {
    "none": {"head": "none", "pooler": True},
    "mlm": {"head": "mlm", "tied": True},
    "label": {"head": "label", "pooler": True, "pool": "first", "label_bias": True,
              "labels": ("bad", "good", "fair")},
}  # fmt: skip


def encoder(head):
    config = ModelConfig(
        family="bert", vocab=8, dim=16, layers=2, heads=4, kv_heads=4, head_dim=4, ff=24,
        context=32, norm="layer", norm_at="post", final_norm=False, act="gelu", gated=False,
        causal=False, positions="learned", embed_norm=True, token_types=2, qkv_bias=True,
        out_bias=True, mlp_bias=True, **HEADS[head],
    )  # fmt: skip
    torch.manual_seed(1)
    return Transformer(config, "encoder")


@pytest.mark.parametrize(
    ("head", "what", "kl", "same"),
    [("none", "hidden states", None, None), ("mlm", "logits", 0, None), ("label", "scores", 0, 3)],
)
def test_an_encoder_is_compared_by_what_it_gives(head, what, kl, same, tmp_path):
    done = export(encoder(head), WORDS, tmp_path / "x", to="hf")
    assert (done.what, done.kl, done.same, done.texts) == (what, kl, same, 3)
    assert done.logit < 1e-6
    again, _ = load(tmp_path / "x")
    assert again.config.head == head
    assert export(encoder(head), WORDS, tmp_path / "b", to="hf", dtype="BF16").logit > 0


def test_an_encoder_reads_its_special_tokens_and_no_more_than_it_can():
    ids = probes(encoder("none"), WORDS)
    assert all(row[0] == WORDS.cls for row in ids)
    assert max(map(len, ids)) <= 32


@pytest.mark.parametrize("context", [1, 2, NEW_TOKENS, NEW_TOKENS + 1])
def test_a_short_context_is_no_obstacle(tiny_tokenizer, context, tmp_path):
    config = ModelConfig(
        family="llama", vocab=tiny_tokenizer.vocab_size, dim=16, layers=1, heads=2, kv_heads=2,
        head_dim=8, ff=16, context=context, tied=True,
    )  # fmt: skip
    done = export(Transformer(config), tiny_tokenizer, tmp_path / "x", to="hf")
    assert done.logit < 1e-4


@pytest.mark.parametrize("to", ["hf", "gguf", "gguf-lora"])
@pytest.mark.parametrize("there", [False, True])
def test_a_check_that_fails_leaves_nothing_behind(
    adapted, tiny_tokenizer, to, there, tmp_path, monkeypatch
):
    calls = []

    def once(model, prompts):
        calls.append(1)
        if len(calls) == 2:
            raise ConfigError("the second reading")
        return answers(model, prompts)

    path, old = tmp_path / "x", {}
    if there:
        export(adapted, tiny_tokenizer, path, to=to)
        old = {part.name: part.read_bytes() for part in parts(path)}
    monkeypatch.setattr("minift.interop.export.answers", once)
    with pytest.raises(ConfigError, match="the second reading"):
        export(adapted, tiny_tokenizer, path, to=to, overwrite=there)
    assert len(calls) == 2
    assert [p.name for p in tmp_path.iterdir()] == (["x"] if there else [])
    if there:
        assert {part.name: part.read_bytes() for part in parts(path)} == old


@pytest.mark.parametrize("to", ["hf", "gguf", "gguf-lora"])
def test_weights_that_are_not_finite_are_refused(adapted, tiny_tokenizer, to, tmp_path):
    change = next(change for _, _, change in changes(adapted))
    change.B.data[0, 0] = float("nan")
    with pytest.raises(ConfigError, match="not finite"):
        export(adapted, tiny_tokenizer, tmp_path / "x", to=to)
    assert not list(tmp_path.iterdir())
