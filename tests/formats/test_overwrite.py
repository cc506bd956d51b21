"""What may be replaced: minift's own files, known by their names and a mark inside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.checkpoints.save import save
from minift.errors import ConfigError, StorageError
from minift.formats import gguf, gguf_write, safetensors
from minift.formats.overwrite import (
    ADAPTER,
    MODEL,
    check_file,
    check_folder,
    check_target,
    foreign,
    marked,
)
from minift.interop.adapter_files import save_adapter
from minift.peft.lora import LoRA
from minift.peft.methods import attach

GOLDEN = Path(__file__).parents[1] / "golden"
TENSORS = {"a": torch.zeros(2)}


@pytest.fixture
def model_folder(tiny_tokenizer, tmp_path):
    save(load_model(GOLDEN / "llama_gqa"), tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_what_minift_saves_is_its_own(model_folder, tmp_path):
    assert foreign(model_folder, MODEL) is None
    for at in ("llama_gqa", "families/bert"):
        model = attach(load_model(GOLDEN / at), LoRA(rank=2))
        save_adapter(model, tmp_path / at)
        assert foreign(tmp_path / at, ADAPTER) is None


def test_a_folder_of_another_kind_is_not_replaced(model_folder):
    assert foreign(model_folder, ADAPTER) == "config.json"


OTHERS = "notes.csv .hidden README.md model.safetensors.bak Config.json model-1-of-2.safetensors"


@pytest.mark.parametrize("name", [*OTHERS.split(), "tokenizer.json\n", "pytorch_model.bin"])
def test_any_other_name_is_foreign(name, model_folder):
    (model_folder / name).write_text("mine")
    assert foreign(model_folder, MODEL) == name
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="which minift did not write; choose another") as told:
            check_folder(model_folder, overwrite, MODEL)
        assert "\n" not in str(told.value)


def test_a_folder_or_a_link_by_a_name_of_minifts_is_foreign(model_folder, tmp_path):
    (tmp_path / "mine").write_text("mine")
    (model_folder / "merges.txt").symlink_to(tmp_path / "mine")
    assert foreign(model_folder, MODEL) == "merges.txt"
    (model_folder / "merges.txt").unlink()
    (model_folder / "minift.json").mkdir()
    assert foreign(model_folder, MODEL) == "minift.json"


def test_the_same_names_without_the_mark_are_foreign(model_folder):
    """As of a model that somebody fetched: transformers writes {"format": "pt"} alone."""
    file = model_folder / "model.safetensors"
    tensors = safetensors.read(file)
    again = {name: tensors.load(name).clone() for name in tensors.tensors}
    for metadata in ({"format": "pt"}, {"writer": "other"}, None):
        safetensors.write(file, again, metadata)
        assert foreign(model_folder, MODEL) == "model.safetensors"
    file.unlink()
    assert foreign(model_folder, MODEL) == "config.json"  # no weights tell whose it is


def test_every_weights_file_needs_the_mark(model_folder):
    safetensors.write(model_folder / "model-00001-of-00002.safetensors", TENSORS)
    assert foreign(model_folder, MODEL) == "model-00001-of-00002.safetensors"


def test_a_single_file_tells_whose_it_is(tmp_path):
    safetensors.write(tmp_path / "a.safetensors", TENSORS, safetensors.MARK | {"more": "text"})
    gguf_write.write(tmp_path / "a.gguf", {}, TENSORS, {"a": "F32"})
    assert gguf.read(tmp_path / "a.gguf").metadata == gguf.MARK
    for name in ("a.safetensors", "a.gguf"):
        assert marked(tmp_path / name)
        check_file(tmp_path / name, True)
        with pytest.raises(ConfigError, match="exists; choose another, or --overwrite"):
            check_file(tmp_path / name, False)
    for name, content in (("text", b"mine"), ("empty", b""), ("half.gguf", b"GGUF\3\0\0\0")):
        (tmp_path / name).write_bytes(content)
        assert not marked(tmp_path / name)
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="minift did not write it"):
                check_file(tmp_path / name, overwrite)
    with pytest.raises(ConfigError, match="is a folder, allowed a file"):
        check_file(tmp_path, True)
    check_file(tmp_path / "new", False)


def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("mine")
    for names in (MODEL, None):
        check_target(tmp_path / "a" / "b", False, names)
        with pytest.raises(StorageError, match="cannot write"):
            check_target(tmp_path / "file" / "b", False, names)
    assert os.listdir(tmp_path) == ["file"]


def test_an_empty_folder_may_be_filled_and_the_current_one_may_not(tmp_path, monkeypatch):
    check_folder(tmp_path, False, MODEL)
    check_folder(tmp_path, True, MODEL)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="is the current folder"):
        check_folder(".", True, MODEL)
