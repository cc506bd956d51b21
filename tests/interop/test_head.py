"""A label head's names in files (that it travels: tests/peft/test_head.py)."""

from __future__ import annotations

from pathlib import Path

from minift.checkpoints.open import load_model
from minift.interop import head
from minift.peft.lora import LoRA
from minift.peft.methods import attach

FAMILIES = Path(__file__).parents[1] / "golden" / "families"


def test_names_of_a_roberta_head_by_hand():
    model = attach(load_model(FAMILIES / "roberta_labels"), LoRA(rank=1, targets=("q",)))
    names = {"classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.weight",
             "classifier.out_proj.bias"}  # fmt: skip
    assert set(head.tensors(model, "default")) == set(head.theirs(model).values()) == names
    assert head.modules(model, "default") == ["classifier"]
    assert set(head.to_file(model, "default", "p.")) == {f"p.{name}" for name in names}
    wanted = head.wanted(model, {"modules_to_save": ["classifier"]}, {}, "p.")
    assert wanted == {name: f"p.{name}" for name in names}
    assert head.wanted(model, {}, {}, "p.") == {}


def test_a_head_of_another_shape_is_a_misfit():
    model = attach(load_model(FAMILIES / "bert_labels"), LoRA(rank=1, targets=("q",)))
    key, rows = "classifier.weight", len(model.config.labels)
    found = {key: (rows + 1, model.config.dim)}
    assert head.misfits_of(model, {key: key}, found) == [
        f"{key} is {(rows + 1, model.config.dim)}, not {(rows, model.config.dim)}"
    ]
