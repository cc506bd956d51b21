"""Token rows that are trained whole (PEFT's numbers of the same: test_golden_adapters.py)."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.formats import safetensors
from minift.interop.adapter_files import CONFIG, TENSORS, load_adapter, save_adapter
from minift.interop.gguf_lora import write
from minift.interop.token_rows import LEAF
from minift.peft.adapters import trainable
from minift.peft.lora import LoRA
from minift.peft.merge import combine, merge, with_tensors
from minift.peft.methods import attach, count

GOLDEN = Path(__file__).parents[1] / "golden"
TIED, APART, MASKED = "families/qwen2", "llama_gqa", "families/bert"
BOTH, TABLE, HEAD = ("embed", "head"), ("embed",), ("head",)
TOKENS = torch.tensor([[5, 9, 2, 5]])
NEW = (9, 4)


def model(name, dtype=torch.float64):
    return load_model(GOLDEN / name, dtype=dtype).eval()


def rows_of(adapted):
    """The trained rows, each parameter once: the table's before the head's."""
    return [p for key, p in trainable(adapted).items() if key.endswith("rows")]


def by_hand(name, where, values):
    """The base with these rows written into its matrices: all that the method means."""
    base = model(name)
    with torch.no_grad():
        if not base.config.tied and where == BOTH:
            base.embed.weight[list(NEW)], base.head.weight[list(NEW)] = values
        elif where == HEAD:
            base.head.weight[list(NEW)] = values[0]
        else:
            base.embed.weight[list(NEW)] = values[0]  # and of the head that is tied to it
    return base


@pytest.mark.parametrize(
    ("name", "where"),
    [(TIED, BOTH), (TIED, TABLE), (APART, BOTH), (APART, TABLE), (APART, HEAD), (MASKED, BOTH)],
)
def test_they_are_the_base_with_other_rows_in_its_tables(name, where, tmp_path):
    base = model(name)
    config = LoRA(rank=1, targets=("q",), tokens=NEW, token_rows=where)
    adapted = attach(copy.deepcopy(base), config)
    dim, tables = base.config.dim, 2 if (name, where) == (APART, BOTH) else 1
    assert [tuple(p.shape) for p in rows_of(adapted)] == [(2, dim)] * tables
    assert count(base, config) - count(base, LoRA(rank=1, targets=("q",))) == 2 * dim * tables
    values = [
        torch.linspace(-1, 1, 2 * dim, dtype=torch.float64).view(2, dim) * (k + 1)
        for k in range(tables)
    ]
    with torch.no_grad():
        for parameter, value in zip(rows_of(adapted), values, strict=True):
            parameter.copy_(value)
        expected = by_hand(name, where, values)(TOKENS)
        got = adapted(TOKENS)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
        merged = merge(adapted)
        torch.testing.assert_close(merged(TOKENS), expected, rtol=0, atol=1e-12)
        assert merged.config.tied == base.config.tied
        save_adapter(adapted, tmp_path / "a")
        loaded = load_adapter(base, tmp_path / "a")
        torch.testing.assert_close(loaded(TOKENS), got, rtol=0, atol=1e-12)
    given = json.loads((tmp_path / "a" / CONFIG).read_text())["trainable_token_indices"]
    stored = [key for key in safetensors.read(tmp_path / "a" / TENSORS).tensors if LEAF in key]
    assert len(stored) == tables
    assert (given == list(NEW)) == (where != HEAD and tables == 1)


def test_a_masked_head_of_its_own_has_rows_of_its_own(tmp_path):
    def untied():
        base = model(MASKED)
        return with_tensors(base, {"head.decoder.weight": 2 * base.embed.weight.detach()})

    adapted = attach(untied(), LoRA(rank=1, targets=("q",), tokens=NEW))
    assert len(rows_of(adapted)) == 2
    with torch.no_grad():
        for parameter in trainable(adapted).values():
            parameter.add_(0.1)
    save_adapter(adapted, tmp_path / "a")
    again = load_adapter(untied(), tmp_path / "a")
    torch.testing.assert_close(again(TOKENS), adapted(TOKENS), rtol=0, atol=1e-12)


def test_a_step_changes_these_rows_and_no_other():
    adapted = attach(model(TIED), LoRA(rank=1, targets=("q",), tokens=NEW))
    before = adapted.embed.weight.detach().clone()
    adapted(TOKENS).sum().backward()
    (rows,) = rows_of(adapted)
    assert bool((rows.grad != 0).any(dim=1).all())  # 4 is not read, but it is predicted
    assert adapted.embed.weight.grad is None
    assert torch.equal(adapted.embed.weight, before)


def test_on_a_bf16_base_they_are_float32():
    adapted = attach(model(APART, torch.bfloat16), LoRA(rank=1, targets=("q",), tokens=NEW))
    assert {p.dtype for p in rows_of(adapted)} == {torch.float32}
    assert adapted(TOKENS).dtype == torch.bfloat16


def test_pissas_training_state_holds_them_too(tmp_path):
    config = LoRA(rank=1, targets=("q",), lora_init="pissa", tokens=NEW)
    adapted = attach(model(TIED), config)
    with torch.no_grad():
        for parameter in trainable(adapted).values():
            parameter.add_(0.1)
    save_adapter(adapted, tmp_path / "a")
    again = load_adapter(model(TIED), tmp_path / "a", trainable=True)
    assert torch.equal(again(TOKENS), adapted(TOKENS))
    assert torch.equal(rows_of(again)[0], rows_of(adapted)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": (3, 3)}, r"tokens: found \(3, 3\), allowed different ids"),
        ({"tokens": (-1,)}, "tokens: found"),
        ({"tokens": (True,)}, "tokens: found"),
        ({"tokens": (1,), "token_rows": ()}, "token_rows: found none, allowed embed, head or both"),
        ({"tokens": (1,), "token_rows": ("q",)}, "token_rows: found q"),
        ({"tokens": (1,), "targets": ("q", "head")}, "tokens: found with embed or head among"),
    ],
)
def test_what_no_model_could_have_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        LoRA(**options)


def test_what_this_model_has_not_is_refused(tmp_path):
    tied, apart = model(TIED), model(APART)
    with pytest.raises(ConfigError, match=r"tokens: found 100000, allowed ids below \d"):
        attach(apart, LoRA(tokens=(100_000,)))
    with pytest.raises(ConfigError, match="token_rows: found head, allowed embed: this model's"):
        attach(tied, LoRA(tokens=NEW, token_rows=HEAD))
    with pytest.raises(ConfigError, match="token_rows: found head, allowed embed: this model scor"):
        attach(model("families/bert_body"), LoRA(tokens=NEW, token_rows=HEAD))
    attach(apart, LoRA(rank=1, targets=("q",), tokens=NEW))
    with pytest.raises(ConfigError, match="gguf-lora: holds linears of the blocks only, not embed"):
        write(apart, tmp_path / "x.gguf")
    with pytest.raises(ConfigError, match=r'combine: found "default", a LoRA .* allowed plain'):
        combine(apart, {"default": 1.0}, name="sum")
