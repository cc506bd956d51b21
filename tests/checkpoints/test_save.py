"""Saving and loading again: the same bits, the same ids, nothing half-written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load, load_model
from minift.checkpoints.save import save
from minift.errors import ConfigError
from minift.formats import gguf
from minift.model.transformer import Transformer
from minift.peft.lora import LoRA
from minift.peft.methods import attach

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return tiny_tokenizer


@pytest.mark.parametrize("name", ["llama_gqa", "llama_biased"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_save_load_is_bit_exact(name, dtype, tokenizer, tmp_path):
    model = load_model(GOLDEN / name, dtype=dtype)
    save(model, tokenizer, tmp_path / "out")
    again = load_model(tmp_path / "out", dtype=dtype)
    assert again.config == model.config
    before, after = dict(model.named_parameters()), dict(again.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_folder_has_what_others_read(tokenizer, tmp_path):
    save(load_model(GOLDEN / "llama_biased"), tokenizer, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["model_type"] == "llama"
    assert config["rope_scaling"]["rope_type"] == "llama3"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}


def test_an_attached_adapter_is_not_saved_away(tokenizer, tmp_path):
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2))
    with pytest.raises(ConfigError, match="merge it first"):
        save(model, tokenizer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_stands_there_is_kept_unless_told(tokenizer, tmp_path):
    model = load_model(GOLDEN / "llama_gqa")
    save(model, tokenizer, tmp_path / "out")
    with pytest.raises(ConfigError):
        save(model, tokenizer, tmp_path / "out")
    save(model, tokenizer, tmp_path / "out", overwrite=True)


@pytest.mark.assets
def test_the_real_checkpoint_survives(asset, tmp_path):
    model, tokenizer = load(asset("smollm2-135m-instruct"))
    save(model, tokenizer, tmp_path / "out")
    again, other = load(tmp_path / "out")
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    text = "Naïve café, 12,345 🙂 <|im_end|>"
    assert other.encode(text) == tokenizer.encode(text)
    assert other.eos == load(asset("smollm2-135m-instruct"))[1].eos


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, "F32"), (torch.bfloat16, "BF16")])
def test_a_path_that_ends_in_gguf_makes_such_a_file(dtype, kind, tokenizer, tmp_path):
    config = load_model(GOLDEN / "llama_gqa").config
    model = Transformer(replace(config, vocab=tokenizer.vocab_size)).to(dtype)
    save(model, tokenizer, tmp_path / "x.gguf")
    kinds = {e.kind for e in gguf.read(tmp_path / "x.gguf").tensors.values()}
    assert kinds == {kind, "F32"}
    again, _ = load(tmp_path / "x.gguf", dtype=dtype)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(ConfigError, match="exists"):
        save(model, tokenizer, tmp_path / "x.gguf")
    with pytest.raises(ConfigError, match="merge it first"):
        save(attach(model, LoRA(rank=2)), tokenizer, tmp_path / "y.gguf")


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_a_weight_that_is_not_finite_is_not_saved(name, tokenizer, tmp_path):
    model = load_model(GOLDEN / "llama_gqa")
    model.norm.weight.data[3] = float("nan")
    named = {"out": "save: tensor .model.norm.weight.", "out.gguf": "gguf: tensor .output_norm"}
    with pytest.raises(ConfigError, match=named[name]):
        save(model, tokenizer, tmp_path / name)
    assert not list(tmp_path.iterdir())
