"""An adapter's folder alone: found by path or name, its labels, what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minift.errors import ConfigError, FormatError
from minift.formats import safetensors
from minift.interop.stored import CONFIG, LABELS, TENSORS, stored

GOLDEN = Path(__file__).parents[1] / "golden"
SCORE = "base_model.model.score.weight"


def folder(tmp_path, tensors, metadata=None, **options):
    data = {"peft_type": "LORA", "r": 1, "lora_alpha": 1} | options
    (tmp_path / CONFIG).write_text(json.dumps(data))
    safetensors.write(tmp_path / TENSORS, tensors, metadata or {})
    return stored(tmp_path)


@pytest.mark.parametrize(("key", "options"), [
    (SCORE, {"task_type": "SEQ_CLS"}), (SCORE, {}),
    ("base_model.model.classifier.out_proj.weight", {"task_type": "SEQ_CLS"}),
    ("base_model.model.classifier.modules_to_save.default.weight", {"task_type": "SEQ_CLS"}),
    (SCORE, {"auto_mapping": {"base_model_class": "GPT2ForSequenceClassification"}}),
])  # fmt: skip
def test_labels_are_as_many_as_the_head_has_rows(tmp_path, key, options):
    found = folder(tmp_path, {key: torch.zeros(3, 4)}, **options)
    assert found.classifies
    assert found.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize("key", ["default", "modules_to_save", "modules_to_save.default", "weight"])
def test_a_tensor_of_no_module_is_no_head(tmp_path, key):
    assert folder(tmp_path, {key: torch.zeros(3, 4)}, task_type="SEQ_CLS").labels == ()
    assert not folder(tmp_path, {key: torch.zeros(3, 4)}).classifies


def test_labels_of_its_own_are_json_and_nothing_beside(tmp_path):
    tensors = {SCORE: torch.zeros(2, 4)}
    named = folder(tmp_path, tensors, {LABELS: '["bad", "good"]'}, task_type="SEQ_CLS")
    assert named.labels == ("bad", "good")
    for text in ('["a"], "x": 1', "[]", '{"labels": ["a"]}', "[1]", "nonsense", '"a"'):
        with pytest.raises(FormatError):
            _ = folder(tmp_path, tensors, {LABELS: text}, task_type="SEQ_CLS").labels


def test_a_file_of_another_program_is_told_from_an_unknown_method(tmp_path):
    (tmp_path / CONFIG).write_text('{"lora_parameters": {"rank": 8}, "model": "x"}')
    with pytest.raises(FormatError, match="peft_type: found no such key: PEFT did not write"):
        stored(tmp_path)
    (tmp_path / CONFIG).write_text('{"peft_type": "VERA", "r": 8}')
    with pytest.raises(FormatError, match="peft_type: found VERA, allowed LORA"):
        stored(tmp_path)


def test_a_name_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match='no adapter folder "me/mine" here, nor whole in'):
        stored("me/mine")
    commit = "0" * 40
    place = tmp_path / "models--me--mine"
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    for name in (CONFIG, TENSORS):
        (snapshot / name).write_bytes((GOLDEN / "lora_qv" / name).read_bytes())
    found = stored("me/mine")
    assert found.folder == snapshot
    assert found.tensors.tensors
