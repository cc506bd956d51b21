"""Whole tensors: a resized vocabulary, what is checked, what is written (PEFT's: real_adapters)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import FormatError, Notice
from minift.formats import safetensors
from minift.interop.adapter_files import CONFIG, TENSORS, load_adapter, save_adapter
from minift.peft.adapters import disabled, names
from minift.peft.lora import LoRA
from minift.peft.methods import attach

GOLDEN = Path(__file__).parents[1] / "golden"
TIED, APART = "families/qwen2", "llama_gqa"
TABLE, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"
TOKENS = torch.tensor([[5, 9, 2, 5]])


def folder(tmp_path, name, extra, **options):
    """A LoRA of `name`, with other tensors and options beside it."""
    model = attach(load_model(GOLDEN / name), LoRA(rank=1, targets=("q",)))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("default.B"):
                parameter.fill_(0.1)
    save_adapter(model, tmp_path / "a")
    file = safetensors.read(tmp_path / "a" / TENSORS)
    safetensors.write(tmp_path / "a" / TENSORS, {k: file.load(k) for k in file.tensors} | extra)
    data = json.loads((tmp_path / "a" / CONFIG).read_text())
    (tmp_path / "a" / CONFIG).write_text(json.dumps(data | options))
    return tmp_path / "a"


@pytest.mark.parametrize("more", [3, -3])
def test_a_table_of_other_rows_resizes_the_model(tmp_path, more):
    base = load_model(GOLDEN / TIED)
    rows = base.config.vocab + more
    table = torch.linspace(-1, 1, rows * base.config.dim).view(rows, -1)
    plain = base(TOKENS)
    with pytest.warns(Notice, match=f"the model has {rows} tokens now"):
        adapted = load_adapter(base, folder(tmp_path, TIED, {TABLE: table}))
    assert adapted(TOKENS).shape[-1] == rows
    assert torch.equal(adapted.get_submodule("embed")(TOKENS), table[TOKENS])
    with disabled(adapted):
        least = min(rows, plain.shape[-1])
        torch.testing.assert_close(adapted(TOKENS)[..., :least], plain[..., :least])
    save_adapter(adapted, tmp_path / "again")
    again = safetensors.read(tmp_path / "again" / TENSORS)
    assert torch.equal(again.load(TABLE), table)
    with pytest.warns(Notice, match="tokens now"):
        second = load_adapter(load_model(GOLDEN / TIED), tmp_path / "again")
    torch.testing.assert_close(second(TOKENS), adapted(TOKENS))


def test_a_head_without_the_rows_of_its_table_is_refused_and_the_model_stays(tmp_path):
    base = load_model(GOLDEN / APART)
    plain, embed = base(TOKENS), base.embed
    table = torch.zeros(base.config.vocab + 2, base.config.dim)
    with pytest.raises(FormatError, match="or as many rows of the output matrix"):
        load_adapter(base, folder(tmp_path, APART, {TABLE: table}))
    assert base.embed is embed
    assert names(base) == []
    assert torch.equal(base(TOKENS), plain)


def test_what_is_promised_must_be_there_in_its_shape(tmp_path):
    base = load_model(GOLDEN / APART)
    bad = {HEAD: torch.zeros(base.config.vocab, 3)}
    with pytest.raises(FormatError, match=r"lm_head.weight is \(\d+, 3\), not \("):
        load_adapter(base, folder(tmp_path, APART, bad, modules_to_save=["lm_head"]))
    with pytest.raises(FormatError, match=f"missing {HEAD}"):
        load_adapter(base, folder(tmp_path / "b", APART, {}, modules_to_save=["lm_head"]))
    nan = {HEAD: torch.full(base.head.weight.shape, float("nan"))}
    with pytest.raises(FormatError, match="NaN or infinity"):
        load_adapter(base, folder(tmp_path / "c", APART, nan, modules_to_save=["lm_head"]))


def test_saved_whole_it_is_trained_and_written_as_it_came(tmp_path):
    own = torch.randn(load_model(GOLDEN / APART).head.weight.shape)
    place = folder(tmp_path, APART, {HEAD: own}, modules_to_save=["lm_head"])
    adapted = load_adapter(load_model(GOLDEN / APART), place, trainable=True)
    assert any(p.requires_grad and p.shape == own.shape for p in adapted.parameters())
    save_adapter(adapted, tmp_path / "again")
    assert torch.equal(safetensors.read(tmp_path / "again" / TENSORS).load(HEAD), own)
    assert json.loads((tmp_path / "again" / CONFIG).read_text())["modules_to_save"] == ["lm_head"]
