"""A family's words for our linears: every path once, ends of names, patterns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.formats import safetensors
from minift.interop.adapter_files import CONFIG, TENSORS, load_adapter, save_adapter
from minift.interop.module_names import ModuleNames
from minift.peft.adapters import trainable
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.peft.slots import linears

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = {folder.name: folder for folder in sorted((GOLDEN / "families").iterdir())}


def spelled(name):
    return ModuleNames(load_model(FOLDERS[name]))


@pytest.mark.parametrize("name", FOLDERS)
def test_every_linear_has_one_name_which_is_the_checkpoints(name):
    model = load_model(FOLDERS[name])
    found, file = ModuleNames(model), safetensors.read(FOLDERS[name] / "model.safetensors")
    for path, linear in linears(model):
        theirs = found.by_ours[path]
        rows, columns = sum(theirs.outputs), theirs.inputs
        shape = (columns, rows) if theirs.transposed else (rows, columns)
        assert file.tensors[f"{theirs.path}.weight"].shape == shape
        assert theirs.outputs[theirs.ours.index(path)] == linear.out_features
    assert found.by_ours["embed"].ours == ("embed",)


@pytest.mark.parametrize("name", FOLDERS)
def test_rows_are_joined_as_they_are_split(name):
    for theirs in spelled(name).theirs.values():
        rows = torch.randn(sum(theirs.outputs), 3)
        parts = theirs.split(rows)
        assert [len(part) for part in parts] == list(theirs.outputs)
        assert torch.equal(theirs.join(parts), rows)


@pytest.mark.parametrize(("name", "ours", "ends"), [
    ("llama_linear", ["attn.qkv.q", "mlp.out.down"], ["down_proj", "q_proj"]),
    ("gpt2", ["attn.qkv.v"], ["c_attn"]),
    ("gpt2", ["attn.out.o"], ["attn.c_proj"]),  # the MLP has a c_proj too
    ("gpt2", ["attn.out.o", "mlp.out.down"], ["c_proj"]),
    ("bert", ["mlp.out.down"], ["0.output.dense", "1.output.dense"]),
    ("distilbert", ["attn.qkv.q"], ["q_lin"]),
])  # fmt: skip
def test_target_modules_mean_these_and_no_other(name, ours, ends):
    found = spelled(name)
    paths = [f"blocks.{i}.{path}" for i in range(2) for path in ours]
    assert found.modules(paths) == ends
    back = found.targets({"target_modules": ends}, (), problems := [])
    assert set(paths) <= set(back)
    assert problems == []


def test_a_module_that_was_renamed_is_written_new_and_read_both_ways(tmp_path):
    """GPT-NeoX's output matrix: embed_out in checkpoints and in older adapters, lm_head now."""
    model = load_model(FOLDERS["gpt_neox"])
    attach(model, LoRA(rank=2, targets=("q", "head")))
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(0.1)
    save_adapter(model, tmp_path / "a")
    file, data = safetensors.read(tmp_path / "a" / TENSORS), (tmp_path / "a" / CONFIG).read_text()
    assert "base_model.model.lm_head.lora_A.weight" in file.tensors
    old = {key.replace("lm_head", "embed_out"): file.load(key) for key in file.tensors}
    safetensors.write(tmp_path / "a" / TENSORS, old)
    (tmp_path / "a" / CONFIG).write_text(data.replace("lm_head", "embed_out"))
    tokens = torch.arange(14).view(2, 7)
    again = load_adapter(load_model(FOLDERS["gpt_neox"]), tmp_path / "a")
    torch.testing.assert_close(again(tokens), model(tokens))


def test_one_layer_alone_is_named_in_full():
    found = spelled("llama_linear")
    assert found.modules(["blocks.1.attn.qkv.q"]) == ["1.self_attn.q_proj"]


@pytest.mark.parametrize(("data", "expected"), [
    ({"target_modules": ["q_proj"], "layers_to_transform": [1]}, ["blocks.1.attn.qkv.q"]),
    ({"target_modules": ["q_proj"], "layers_to_transform": 0}, ["blocks.0.attn.qkv.q"]),
    ({"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["o_proj"],
      "layers_to_transform": [0]}, ["blocks.0.attn.qkv.q"]),
])  # fmt: skip
def test_layers_and_exclusions(data, expected):
    problems = []
    assert list(spelled("llama_linear").targets(data, (), problems)) == expected
    assert problems == []


@pytest.mark.parametrize("data", [
    {"target_modules": 7}, {"target_modules": ["nothing"]}, {"target_modules": [1]},
    {"target_modules": {}}, {"target_modules": ["q_proj"], "layers_to_transform": "0"},
    {"target_modules": ["q_proj"], "exclude_modules": 3},
])  # fmt: skip
def test_what_is_no_list_of_names_is_a_problem(data):
    spelled("llama_linear").targets(data, (), problems := [])
    assert len(problems) == 1


def test_patterns_of_ranks_the_first_that_fits_counts():
    table = {"layers.1.self_attn.q_proj": 5, r"^model\.layers\.0\.self_attn\.q_proj$": 4,
             "q_proj": 3, "c_attn": 9}  # fmt: skip
    found = spelled("llama_linear")
    paths = [f"blocks.{i}.attn.qkv.{name}" for i in range(2) for name in "qv"]

    def ranks(table, kind=int, needed=True):
        problems = []
        return found.pattern(table, kind, "ranks", paths, problems, needed=needed), problems

    assert ranks(table) == ({paths[0]: 4, paths[2]: 5}, [])
    # Case by case as PEFT 0.21.2 matches: the whole path, or its end after a dot.
    for name, expected in [
        ("^v_proj", {}),
        ("self.attn.q_proj", {paths[0]: 1, paths[2]: 1}),
        ("proj", {}),
        (r".*\.1\..*v_proj", {paths[3]: 1}),
        ("elf_attn.q_proj", {}),
        ("q_proj|v_proj", dict.fromkeys(paths, 1)),
        ("model.*1.*", {paths[2]: 1, paths[3]: 1}),
    ]:
        assert ranks({name: 1}) == (expected, []), name
    for bad in ({"q_proj": 2.5}, {"q_proj": True}, {"(?=q)": 3}, {"(": 3}):
        assert len(ranks(bad)[1]) == 1
    assert ranks({"(?=q)": 3}, needed=False) == (None, [])


def test_another_class_of_the_family_is_placed():
    path = "layers.0.self_attn.q_proj"
    for before in ("language_model.model.", "model.language_model.", "model.", ""):
        found = spelled("gemma3")
        assert found.place(f"{before}{path}") == f"model.{path}"
        assert found.said(f"model.{path}") == f"{before}{path}"
    assert found.place("language_model.lm_head") == "lm_head"
    assert found.place("vision_tower.layers.0") is None
    assert spelled("bert_body").place("bert.pooler.dense") == "pooler.dense"
