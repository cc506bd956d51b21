"""LoRA as GGUF: names, the order of B's rows, alpha, and what such a file cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from minift.checkpoints.gguf_model import weights
from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.formats import gguf
from minift.interop.gguf_lora import read_back, write
from minift.peft.ia3 import IA3
from minift.peft.lora import LoRA
from minift.peft.merge import merge
from minift.peft.methods import attach
from minift.peft.slots import changes, insert

GOLDEN = Path(__file__).parents[1] / "golden"


def adapted(config: LoRA):
    model = attach(load_model(GOLDEN / "llama_gqa"), config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, _, change in changes(model):
            change.B.normal_(generator=generator)
    model.source = "runs/llama"
    return model


@pytest.mark.parametrize("rslora", [False, True])
def test_added_as_llama_cpp_does_it_is_the_merged_model(rslora, tmp_path):
    """W + alpha / R lora_b lora_a, with the tensors of the base's GGUF: those of the merged one."""
    model = adapted(LoRA(rank=4, alpha=6, rslora=rslora))
    write(model, tmp_path / "a.gguf")
    file = gguf.read(tmp_path / "a.gguf")
    alpha = file.metadata["adapter.lora.alpha"]
    assert alpha == pytest.approx(12.0 if rslora else 6.0)
    base = weights(load_model(GOLDEN / "llama_gqa"))
    merged = weights(merge(model))
    for name, weight in base.items():
        if f"{name}.lora_a" in file.tensors:
            a, b = file.load(f"{name}.lora_a"), file.load(f"{name}.lora_b")
            assert (a.shape, b.shape) == ((4, weight.shape[1]), (weight.shape[0], 4))
            torch.testing.assert_close(weight + alpha / 4 * b @ a, merged[name])
            assert not torch.allclose(weight, merged[name])
        else:
            assert torch.equal(weight, merged[name])
    assert len(file.tensors) == 2 * 7 * 3


def test_what_the_file_says(tmp_path):
    write(adapted(LoRA(rank=2, targets=("q", "v"))), tmp_path / "a.gguf", "F16")
    file = gguf.read(tmp_path / "a.gguf")
    assert file.metadata == {
        "general.type": "adapter",
        "general.architecture": "llama",
        "general.base_model.0.name": "llama",
        "adapter.type": "lora",
        "adapter.lora.alpha": 16.0,
        "minift.writer": "minift",
    }
    assert sorted(file.tensors) == sorted(
        f"blk.{i}.attn_{name}.weight.lora_{part}"
        for i in range(3)
        for name in "qv"
        for part in "ab"
    )
    assert {entry.kind for entry in file.tensors.values()} == {"F16"}


def test_read_back_is_what_was_written(tmp_path):
    model = adapted(LoRA(rank=3))
    write(model, tmp_path / "a.gguf")
    found = read_back(model, tmp_path / "a.gguf")
    for path, _, change in changes(model):
        assert torch.equal(found[path][0], change.A)
        assert torch.equal(found[path][1], change.B)


def test_what_such_a_file_cannot_hold_is_refused(tmp_path):
    path = tmp_path / "a.gguf"
    with pytest.raises(ConfigError, match="nothing is attached"):
        write(load_model(GOLDEN / "llama_gqa"), path)
    model = adapted(LoRA(rank=2))
    with pytest.raises(ConfigError, match=r'found "Q8_0", allowed F32, F16, BF16 for gguf-lora'):
        write(model, path, "Q8_0")
    insert(model, "blocks.0.mlp", "default", nn.Identity())
    with pytest.raises(ConfigError, match=r"linears of the blocks only, not blocks\.0\.mlp"):
        write(model, path)
    model = adapted(LoRA(rank=2))
    model.blocks[0].attn.qkv.changes["q"]["default"] = nn.Identity()
    with pytest.raises(
        ConfigError, match=r"linears of the blocks only, not blocks\.0\.attn\.qkv\.q"
    ):
        write(model, path)
    for target in ("embed", "head"):
        whole = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2, targets=("q", target)))
        with pytest.raises(ConfigError, match=f"linears of the blocks only, not {target}"):
            write(whole, path)
    with pytest.raises(ConfigError, match="holds LoRA only, not the DoRA"):
        write(adapted(LoRA(rank=2, dora=True)), path)
    with pytest.raises(ConfigError, match="holds LoRA only, not the IA3"):
        write(attach(load_model(GOLDEN / "llama_gqa"), IA3()), path)
    model = adapted(LoRA(rank=2))
    model.blocks[0].attn.qkv.changes["q"]["default"].scale = 1.5
    with pytest.raises(ConfigError, match="has one alpha, and here are 2"):
        write(model, path)
    path.write_text("mine")
    with pytest.raises(ConfigError, match="exists"):
        write(adapted(LoRA(rank=2)), path)
    assert path.read_text() == "mine"
