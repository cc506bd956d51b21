"""What a key of an adapter file means: every way in which PEFT and raw state dicts wrote it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import FormatError
from minift.formats.safetensors import Entry
from minift.interop.contents import contents_of
from minift.interop.module_names import ModuleNames

GOLDEN = Path(__file__).parents[1] / "golden"
Q = "model.layers.0.self_attn.q_proj"


@dataclass
class Tensors:
    tensors: dict = field(default_factory=dict)
    path: Path = Path("adapter_model.safetensors")


def found(*keys, model="families/qwen2", dtype=torch.float32, soft=False):
    file = Tensors({key: Entry(dtype, (2, 2), 0, 16) for key in keys})
    return contents_of(file, ModuleNames(load_model(GOLDEN / model)), soft=soft)


@pytest.mark.parametrize(("end", "leaf"), [
    ("lora_A.weight", "lora_A.weight"), ("lora_A.default.weight", "lora_A.weight"),
    ("lora_B.my-name.bias", "lora_B.bias"), ("lora_magnitude_vector", "lora_magnitude_vector"),
    ("lora_magnitude_vector.weight", "lora_magnitude_vector"), ("ia3_l", "ia3_l"),
    ("lora_magnitude_vector.default.weight", "lora_magnitude_vector"), ("ia3_l.default", "ia3_l"),
])  # fmt: skip
def test_changes(end, leaf):
    key = f"base_model.model.{Q}.{end}"
    assert found(key).changes == {Q: {leaf: key}}


@pytest.mark.parametrize(("key", "tensor", "under"), [
    ("lm_head.weight", "lm_head.weight", False),
    ("lm_head.modules_to_save.weight", "lm_head.weight", False),
    ("lm_head.modules_to_save.default.weight", "lm_head.weight", False),
    ("lm_head.base_layer.weight", "lm_head.weight", True),
    ("model.embed_tokens.token_adapter.base_layer.weight", "model.embed_tokens.weight", True),
    (f"{Q}.base_layer.bias", f"{Q}.bias", True), (f"{Q}.bias", f"{Q}.bias", False),
    ("model.norm.weight", "model.norm.weight", False),
])  # fmt: skip
def test_whole_tensors(key, tensor, under):
    contents = found(f"base_model.model.{key}")
    assert contents.weights == {tensor: f"base_model.model.{key}"}
    assert contents.under == ({tensor} if under else set())


def test_a_tensor_that_is_there_in_several_ways_counts_once():
    ways = ("original_module.", "", "modules_to_save.default.")
    keys = [f"base_model.model.classifier.{way}bias" for way in ways]
    contents = found(*keys, model="families/bert_labels")
    assert contents.weights == {"classifier.bias": keys[2]}
    assert not contents.unknown
    twice = found(f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_A.x.weight")
    assert twice.twice == [f"base_model.model.{Q}.lora_A.x.weight"]


def test_what_has_no_place_is_named_and_pictures_are_apart():
    contents = found("x.lora_A.weight", "base_model.model.x.lora_A.weight",
                     "base_model.model.vision_tower.a.q_proj.lora_A.weight")  # fmt: skip
    assert contents.unknown == ["x.lora_A.weight", "base_model.model.x.lora_A.weight"]
    assert len(contents.pictures) == 1
    soft = found("prompt_embeddings", "base_model.classifier.weight", soft=True,
                 model="families/bert_labels")  # fmt: skip
    assert soft.changes == {"": {"prompt_embeddings": "prompt_embeddings"}}
    assert set(soft.weights) == {"classifier.weight"}


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float8_e4m3fn])
def test_other_numbers_than_floats_are_refused(dtype):
    with pytest.raises(FormatError, match="allowed float32, float16, bfloat16, float64"):
        found(f"base_model.model.{Q}.lora_A.weight", dtype=dtype)
