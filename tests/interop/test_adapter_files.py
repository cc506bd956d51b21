"""Adapter folders that PEFT wrote (tests/golden/make_lora.py): same numbers, strict reading."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import ConfigError, FormatError
from minift.formats import safetensors
from minift.interop.adapter_files import CONFIG, STATE, TENSORS, load_adapter, save_adapter
from minift.interop.module_names import ModuleNames
from minift.peft.adapters import active, config_of, disabled, names, trainable
from minift.peft.lora import LoRA
from minift.peft.merge import merge, merge_error
from minift.peft.methods import attach
from minift.peft.prefix import Prefix
from minift.peft.ptuning import PTuning
from minift.peft.slots import changes

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("lora_all", "lora_qv", "lora_rs", "lora_pattern")


def loaded(name, dtype=torch.float64, **options):
    data = np.load(GOLDEN / f"{name}.npz")
    model = load_model(GOLDEN / str(data["base"]), dtype=dtype).eval()
    return load_adapter(model, GOLDEN / name, **options), data


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_pefts_and_the_base_and_the_merged_model_too(name):
    model, data = loaded(name)
    tokens, real = torch.from_numpy(data["tokens"]), torch.from_numpy(data["mask"]).bool()
    with torch.no_grad():
        with disabled(model):
            plain = model(tokens, mask=real)
        got = {"logits64": model(tokens, mask=real), "plain64": plain}
        got["merged64"] = merge(model)(tokens, mask=real)
    for key, logits in got.items():
        expected = torch.from_numpy(data[key])[real]
        torch.testing.assert_close(logits[real], expected, rtol=0, atol=1e-10)
    assert (got["logits64"] - plain)[real].abs().max() > 0.1  # the adapter does something


@pytest.mark.parametrize("name", NAMES)
def test_float32_logits_equal_pefts(name):
    model, data = loaded(name, torch.float32)
    tokens, real = torch.from_numpy(data["tokens"]), torch.from_numpy(data["mask"]).bool()
    with torch.no_grad():
        got = model(tokens, mask=real)[real]
    torch.testing.assert_close(got, torch.from_numpy(data["logits"])[real], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_gradient_equals_pefts(name):
    model, data = loaded(name, trainable=True)
    tokens, learn = torch.from_numpy(data["tokens"]), torch.from_numpy(data["learn"]).bool()[:, 1:]
    logits = model(tokens)[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits[learn], tokens[:, 1:][learn], reduction="sum")
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(data["loss64"]), rel=1e-12)
    theirs = ModuleNames(model).by_ours
    compared = 0
    for path, _, change in changes(model):
        for letter in ("A", "B"):
            key = f"grad64.base_model.model.{theirs[path].path}.lora_{letter}.weight"
            expected = torch.from_numpy(data[key])
            torch.testing.assert_close(getattr(change, letter).grad, expected, rtol=0, atol=1e-9)
            compared += 1
    assert compared == sum(key.startswith("grad64.") for key in data.files)


@pytest.mark.parametrize("name", NAMES)
def test_saving_gives_pefts_tensors_back_and_the_same_bytes_twice(name, tmp_path):
    model, _ = loaded(name, torch.float32)
    save_adapter(model, tmp_path / "a")
    save_adapter(model, tmp_path / "b")
    for file in (CONFIG, TENSORS):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    mine, theirs = (
        safetensors.read(tmp_path / "a" / TENSORS),
        safetensors.read(GOLDEN / name / TENSORS),
    )
    assert set(mine.tensors) == set(theirs.tensors)
    assert all(torch.equal(mine.load(key), theirs.load(key)) for key in mine.tensors)
    ours = json.loads((tmp_path / "a" / CONFIG).read_text())
    pefts = json.loads((GOLDEN / name / CONFIG).read_text())
    for key in ("peft_type", "r", "lora_alpha", "use_rslora", "task_type", "bias"):
        assert ours[key] == pefts[key]
    assert sorted(ours["target_modules"]) == sorted(pefts["target_modules"])


def broken(tmp_path, edit_config=lambda c: None, edit_tensors=lambda t: None):
    folder = tmp_path / "adapter"
    shutil.copytree(GOLDEN / "lora_qv", folder)
    config = json.loads((folder / CONFIG).read_text())
    edit_config(config)
    (folder / CONFIG).write_text(json.dumps(config))
    file = safetensors.read(folder / TENSORS)
    tensors = {key: file.load(key) for key in file.tensors}
    edit_tensors(tensors)
    safetensors.write(folder / TENSORS, tensors)
    return folder


def rename(tensors):
    for key in list(tensors):
        tensors[key.removeprefix("base_model.model.")] = tensors.pop(key)


def refused(folder):
    base = str(np.load(GOLDEN / "lora_qv.npz")["base"])
    model = load_model(GOLDEN / base)
    before = dict(model.named_parameters()).keys()
    with pytest.raises(FormatError) as caught:
        load_adapter(model, folder)
    assert dict(model.named_parameters()).keys() == before  # nothing was attached
    return str(caught.value)


def test_a_wrong_prefix_lists_every_key(tmp_path):
    text = refused(broken(tmp_path, edit_tensors=rename))
    count = len(safetensors.read(GOLDEN / "lora_qv" / TENSORS).tensors)
    assert text.count("missing base_model.model.") == count
    assert text.count("unexpected model.layers.") == count


def test_a_missing_an_extra_and_a_misshapen_tensor_are_all_named(tmp_path):
    def edit(tensors):
        first, second = sorted(tensors)[:2]
        del tensors[first]
        tensors["extra.weight"] = torch.zeros(2)
        tensors[second] = tensors[second][:-1].clone()

    text = refused(broken(tmp_path, edit_tensors=edit))
    assert "missing " in text
    assert "unexpected extra.weight" in text
    assert ", not (" in text


def test_zeros_change_nothing_and_are_refused_unless_training_goes_on(tmp_path):
    def edit(tensors):
        for key in tensors:
            if "lora_B" in key:
                tensors[key].zero_()

    folder = broken(tmp_path, edit_tensors=edit)
    assert "an adapter that changes nothing" in refused(folder)
    base = str(np.load(GOLDEN / "lora_qv.npz")["base"])
    model = load_adapter(load_model(GOLDEN / base), folder, trainable=True)
    assert len(trainable(model)) == len(safetensors.read(folder / TENSORS).tensors)


BAD_OPTIONS = [
    ("use_dora", True, "shape-mismatch"), ("bias", "some", "unknown-field"),
    ("modules_to_save", ["lm_head"], "shape-mismatch"), ("peft_type", "IA3", "unknown-field"),
    ("rank_pattern", {"q_proj": 2}, "shape-mismatch"), ("r", 0, "out-of-range"),
    ("r", True, "unknown-field"), ("lora_alpha", "8", "unknown-field"), ("r", 4, "shape-mismatch"),
    ("target_modules", ".*q_proj", "shape-mismatch"),
    ("target_modules", ["q_proj", "nothing"], "shape-mismatch"), ("new_trick", 3, "unknown-field"),
    ("init_lora_weights", "pissa", "unknown-field"),
    ("target_modules", ["model.layers.0.self_attn.q_proj"], "shape-mismatch"),
    ("base_model_name_or_path", ["x"], "bad-type"), ("r", -1, "out-of-range"),
    ("r", 2.0, "unknown-field"), ("r", None, "unknown-field"), ("r", 10**19, "shape-mismatch"),
    ("lora_alpha", 0, "out-of-range"), ("lora_alpha", -8, "out-of-range"),
    ("lora_alpha", None, "unknown-field"), ("lora_alpha", True, "unknown-field"),
    ("lora_dropout", 1, "out-of-range"), ("lora_dropout", -0.1, "out-of-range"),
    ("lora_dropout", "0", "unknown-field"), ("use_rslora", 1, "unknown-field"),
    ("target_modules", 7, "unknown-field"), ("target_modules", [], "unknown-field"),
    ("target_modules", [3], "unknown-field"), ("target_modules", [""], "unknown-field"),
    ("target_modules", "all-linear", "shape-mismatch"), ("target_modules", {}, "unknown-field"),
    ("target_modules", ["q_proj", "v_proj", "k_proj"], "shape-mismatch"),
    ("target_modules", ["q"], "unknown-field"), ("layers_to_transform", [0], "shape-mismatch"),
    ("bias", True, "unknown-field"), ("lora_bias", True, "shape-mismatch"),
    ("kasa_config", {"beta": 1}, "unknown-field"), ("task_type", "TOKEN_CLS", "unknown-field"),
    ("init_lora_weights", "olora", "unknown-field"), ("enable_lora", [True], "unknown-field"),
    ("trainable_token_indices", [1], "shape-mismatch"),
    ("target_parameters", ["x"], "unknown-field"), ("exclude_modules", [7], "unknown-field"),
    ("exclude_modules", ".*v_proj", "shape-mismatch"), ("modules_to_save", "x", "unknown-field"),
    ("alpha_pattern", {"(?=q)": 3}, "unknown-field"),
    ("rank_pattern", {".*q_proj": 2}, "shape-mismatch"),
    ("rank_pattern", {"q_proj|v_proj": 2}, "shape-mismatch"),
    ("layer_replication", [[0, 1]], "unknown-field"), ("peft_type", None, "out-of-range"),
    ("peft_type", ["LORA"], "out-of-range"), ("auto_run", "rm -rf /", "unknown-field"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [option[:2] for option in BAD_OPTIONS])
def test_options_that_minift_does_not_have_are_refused(tmp_path, key, value):
    text = refused(broken(tmp_path, edit_config=lambda c: c.__setitem__(key, value)))
    assert key.removeprefix("lora_") in text or "that do not fit" in text


def test_ranks_and_alphas_by_pattern_are_those_of_the_file():
    model, _ = loaded("lora_pattern")
    found = {path: (c.A.shape[0], c.scale) for path, _, c in changes(model)}
    assert found["blocks.1.attn.qkv.q"] == (5, 6 / 5)
    assert found["blocks.0.attn.qkv.q"] == (3, 4 / 3)
    assert found["blocks.0.mlp.out.down"] == (2, 3)
    assert found["blocks.0.attn.out.o"] == (3, 2)


@pytest.mark.parametrize("pattern", [{"q_proj": "2"}, {"q_proj": 2.5}, [7]])
def test_patterns_without_a_rank_are_refused(tmp_path, pattern):
    folder = broken(tmp_path, edit_config=lambda c: c.__setitem__("rank_pattern", pattern))
    assert "rank_pattern" in refused(folder)


@pytest.mark.parametrize(("key", "value"), [
    ("target_modules", None), ("exclude_modules", "lm_head"), ("bias", "all"),
    ("target_modules", ["q_proj", "v_proj", "c_attn"]), ("rank_pattern", {"(a+)+$": 2}),
    ("target_modules", "(?!x).*"), ("rank_pattern", {"(?=q)": 2}), ("enable_lora", None),
    ("merge_weights", False), ("init_lora_weights", "eva"), ("init_lora_weights", "mica"),
    ("loftq_config", {"loftq_bits": 4}), ("megatron_core", "megatron.core"),
])  # fmt: skip
def test_options_that_change_no_number_are_passed_over(tmp_path, key, value):
    folder = broken(tmp_path, edit_config=lambda c: c.__setitem__(key, value))
    base = str(np.load(GOLDEN / "lora_qv.npz")["base"])
    tokens = torch.arange(12).view(1, 12)
    plain = load_adapter(load_model(GOLDEN / base), GOLDEN / "lora_qv")
    assert torch.equal(load_adapter(load_model(GOLDEN / base), folder)(tokens), plain(tokens))


def test_a_bin_file_is_read_and_a_safetensors_file_beside_it_preferred(tmp_path):
    """PEFT wrote .bin until 0.6; of both it takes the other."""
    folder = broken(tmp_path)
    file = safetensors.read(folder / TENSORS)
    torch.save({key: file.load(key) for key in file.tensors}, folder / "adapter_model.bin")
    base = str(np.load(GOLDEN / "lora_qv.npz")["base"])
    tokens = torch.arange(12).view(1, 12)
    plain = load_adapter(load_model(GOLDEN / base), folder)(tokens)
    (folder / TENSORS).unlink()
    assert torch.equal(load_adapter(load_model(GOLDEN / base), folder)(tokens), plain)
    shutil.copy(GOLDEN / "lora_qv" / TENSORS, folder / TENSORS)
    (folder / "adapter_model.bin").write_bytes(b"nothing")
    assert torch.equal(load_adapter(load_model(GOLDEN / base), folder)(tokens), plain)


def test_a_run_folder_stands_for_its_adapter(tmp_path):
    shutil.copytree(GOLDEN / "lora_qv", tmp_path / "run" / "adapter")
    base = str(np.load(GOLDEN / "lora_qv.npz")["base"])
    load_adapter(load_model(GOLDEN / base), tmp_path / "run")
    with pytest.raises(ConfigError, match="no adapter folder"):
        load_adapter(load_model(GOLDEN / base), tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="holds no adapter"):
        load_adapter(load_model(GOLDEN / base), tmp_path)


def test_nothing_attached_is_nothing_to_save(tmp_path):
    with pytest.raises(ConfigError, match="nothing is attached"):
        save_adapter(load_model(GOLDEN / "llama_gqa"), tmp_path / "a")


def test_merging_in_bf16_says_what_rounding_cost():
    model = attach(load_model(GOLDEN / "llama_gqa", dtype=torch.bfloat16), LoRA(rank=2))
    with torch.no_grad():
        for _, _, change in changes(model):
            change.B.normal_(std=0.1, generator=torch.Generator().manual_seed(3))
    merged = merge(model)
    error = merge_error(model, merged, torch.arange(12).view(1, 12))
    assert 0 < error.logit < 1
    assert error.tokens == 12
    assert merged.blocks[0].attn.qkv.q.weight.dtype == torch.bfloat16


# ---- what only training needs --------------------------------------------------------------------

WITH_STATE = {
    "ptuning": PTuning(3, encoder_hidden=5),
    "lstm": PTuning(3, "lstm", encoder_hidden=4, encoder_layers=2),
    "prefix": Prefix(3, prefix_mlp=5),
    "pissa": LoRA(rank=2, lora_init="pissa", targets=("q", "down")),
}


def in_training(name, folder="llama_gqa"):
    """A model whose adapter was trained for a while, and its last gradients."""
    model = attach(load_model(GOLDEN / folder), WITH_STATE[name], seed=3)
    return stepped(model)


def stepped(model, steps=2):
    optimizer = torch.optim.SGD(trainable(model).values(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.arange(14).view(2, 7)).square().mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("folder", ["llama_gqa", "families/gpt2", "families/bert_labels"])
@pytest.mark.parametrize("name", WITH_STATE)
def test_training_goes_on_with_the_same_gradients(name, folder, tmp_path):
    first = in_training(name, folder)
    save_adapter(first, tmp_path / "a")
    second = load_adapter(load_model(GOLDEN / folder), tmp_path / "a", trainable=True)
    stepped(first, 1)
    stepped(second, 1)
    mine, again = trainable(first), trainable(second)
    assert mine.keys() == again.keys()
    for key, parameter in mine.items():
        assert torch.equal(parameter.grad, again[key].grad), key
        assert torch.equal(parameter, again[key]), key


@pytest.mark.parametrize("name", ["ptuning", "lstm", "prefix"])
def test_without_the_state_training_goes_on_from_what_the_network_made(name, tmp_path):
    first = in_training(name)
    save_adapter(first, tmp_path / "a")
    (tmp_path / "a" / STATE).unlink()
    second = load_adapter(load_model(GOLDEN / "llama_gqa"), tmp_path / "a", trainable=True)
    tokens = torch.arange(14).view(2, 7)
    torch.testing.assert_close(second(tokens), first(tokens))
    assert len(trainable(second)) == 1


def edited_state(tmp_path, name, tensors=lambda t: None, metadata=lambda m: None):
    save_adapter(in_training(name), tmp_path / "a")
    file = safetensors.read(tmp_path / "a" / STATE)
    there, facts = {key: file.load(key) for key in file.tensors}, dict(file.metadata)
    tensors(there)
    metadata(facts)
    safetensors.write(tmp_path / "a" / STATE, there, facts)
    return tmp_path / "a"


def refused_state(folder, text):
    """It says what is wrong; the model, another adapter and what may learn stay as they were."""
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2), name="mine")
    tokens, learned = torch.arange(14).view(2, 7), trainable(model).keys()
    before = model(tokens)
    with pytest.raises(FormatError, match=text) as caught:
        load_adapter(model, folder, trainable=True)
    assert Path(caught.value.path).name == STATE
    assert (names(model), active(model)) == (["mine"], "mine")
    assert trainable(model).keys() == learned
    assert torch.equal(model(tokens), before)
    load_adapter(model, folder)  # for use it is not even read


@pytest.mark.parametrize("name", WITH_STATE)
@pytest.mark.parametrize("value", [30.0, float("nan"), float("inf")])
def test_a_state_that_leads_elsewhere_is_refused(name, value, tmp_path):
    def edit(tensors):
        for tensor in tensors.values():
            tensor.view(-1)[0] = value

    refused_state(edited_state(tmp_path, name, edit), "a state that gives another")


@pytest.mark.parametrize("name", WITH_STATE)
def test_a_state_with_other_tensors_is_refused(name, tmp_path):
    def edit(tensors):
        key = min(tensors)
        tensors["strange"] = tensors.pop(key)

    refused_state(edited_state(tmp_path, name, edit), "tensors: found 2 that do not fit")
    shutil.rmtree(tmp_path / "a")

    def cut(tensors):
        key = min(tensors)
        tensors[key] = tensors[key][:-1].clone()

    refused_state(edited_state(tmp_path, name, cut), "tensors: found")


@pytest.mark.parametrize("value", [
    "", "[]", "{", "null", '{"rank": 2}', "set", '{"ptuning_tokens": 3, "ptuning_tokens": 3}',
    {"ptuning_tokens": "3"}, {"ptuning_tokens": True}, {"ptuning_tokens": 4},
    {"encoder": ["mlp"]}, {"encoder": "gru"}, {"encoder_hidden": 10**12},
    {"encoder_hidden": 0}, {"encoder_layers": None}, {"more": 1},
])  # fmt: skip
def test_a_hostile_state_is_refused(value, tmp_path):
    def edit(facts):
        if isinstance(value, dict):
            facts["config"] = json.dumps(json.loads(facts["config"]) | value)
        else:
            facts["config"] = value

    refused_state(edited_state(tmp_path, "ptuning", metadata=edit), "config|tensors")


@pytest.mark.parametrize("value", [
    {"ranks": [["q"]]}, {"ranks": 5}, {"ranks": [[1, 2]]}, {"targets": "q"}, {"targets": [1]},
    {"alpha": "8"}, {"alpha": None}, {"dora": 1}, {"rank": 10**9}, {"rank": 1},
    {"lora_init": "uniform"}, {"targets": ["q"]}, {"targets": ["nothing"]},
])  # fmt: skip
def test_a_hostile_state_of_a_lora_is_refused(value, tmp_path):
    def edit(facts):
        facts["config"] = json.dumps(json.loads(facts["config"]) | value)

    folder = edited_state(tmp_path, "pissa", metadata=edit)
    model = load_model(GOLDEN / "llama_gqa")
    with pytest.raises(FormatError):
        load_adapter(model, folder, trainable=True)
    assert names(model) == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_another_methods_state_is_refused(tmp_path):
    folder = edited_state(tmp_path, "prefix", metadata=lambda m: m.update(method="PTuning"))
    refused_state(folder, "the fields of Prefix")


@pytest.mark.parametrize(("name", "key", "value"), [
    ("ptuning", "num_virtual_tokens", 10**12), ("ptuning", "num_virtual_tokens", "3"),
    ("ptuning", "num_virtual_tokens", True), ("ptuning", "num_virtual_tokens", -1),
    ("ptuning", "encoder_hidden_size", "5"), ("ptuning", "encoder_hidden_size", -5),
    ("ptuning", "encoder_reparameterization_type", "GRU"),
    ("ptuning", "encoder_reparameterization_type", {"a": 1}), ("ptuning", "encoder_num_layers", []),
    ("ptuning", "num_transformer_submodules", 2), ("prefix", "encoder_hidden_size", "5"),
    ("prefix", "prefix_projection", "yes"), ("prefix", "num_virtual_tokens", None),
    ("pissa", "rank_pattern", {"q_proj": 10**9}), ("pissa", "alpha_pattern", {"q_proj": "a"}),
    ("pissa", "use_rslora", "yes"), ("pissa", "lora_alpha", -1), ("pissa", "lora_dropout", 2),
    ("pissa", "target_modules", {"q_proj": 1}), ("pissa", "init_lora_weights", "pissa_niter_4"),
    ("pissa", "init_lora_weights", {"a": []}), ("pissa", "modules_to_save", "lm_head"),
    ("pissa", "layers_to_transform", ["0"]), ("pissa", "exclude_modules", 3),
])  # fmt: skip
def test_a_hostile_config_is_refused(name, key, value, tmp_path):
    save_adapter(in_training(name), tmp_path / "a")
    data = json.loads((tmp_path / "a" / CONFIG).read_text())
    (tmp_path / "a" / CONFIG).write_text(json.dumps(data | {key: value}))
    model = load_model(GOLDEN / "llama_gqa")
    with pytest.raises(FormatError):
        load_adapter(model, tmp_path / "a")
    assert names(model) == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_network_is_not_made_for_use_whatever_its_size(tmp_path):
    for name in ("lstm", "prefix"):
        save_adapter(in_training(name), tmp_path / name)
        data = json.loads((tmp_path / name / CONFIG).read_text())
        data |= {"encoder_hidden_size": 10**12}
        (tmp_path / name / CONFIG).write_text(json.dumps(data))
        model = load_adapter(load_model(GOLDEN / "llama_gqa"), tmp_path / name)
        assert model(torch.arange(7)[None]).isfinite().all()


def test_a_name_that_is_taken_leaves_its_adapter_alone(tmp_path):
    model = in_training("pissa")
    save_adapter(model, tmp_path / "a")
    with pytest.raises(ConfigError, match='an adapter "default" already'):
        load_adapter(model, tmp_path / "a")
    assert active(model) == "default"


@pytest.mark.parametrize("late", [False, True])
def test_a_classifier_that_fails_gives_the_model_its_old_head_back(late, tmp_path, monkeypatch):
    model = load_model(GOLDEN / str(np.load(GOLDEN / "lora_qv.npz")["base"]))
    head, plain = model.head, model(torch.tensor([[5, 9, 2]]))
    learned = {key: parameter.requires_grad for key, parameter in model.named_parameters()}

    def edit(tensors):
        tensors["base_model.model.score.weight"] = torch.ones(3, model.config.dim)
        if not late:
            tensors["base_model.model.unknown.weight"] = torch.ones(1)

    def fail(*_):
        raise FormatError(tmp_path, "late", "anything", "nothing", "limit")

    if late:  # when all is attached
        monkeypatch.setattr("minift.interop.adapter_files.head.fill", fail)
    folder = broken(tmp_path, lambda c: c.update(task_type="SEQ_CLS"), edit)
    with pytest.raises(FormatError, match="late" if late else "unexpected base_model.model.unk"):
        load_adapter(model, folder)
    assert model.head is head
    assert model.config.head == "lm"
    assert learned == {key: parameter.requires_grad for key, parameter in model.named_parameters()}
    # And what is attached to the old head afterwards is asked.
    attach(model, LoRA(rank=1, targets=("head",)))
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.fill_(0.1)
    assert not torch.allclose(model(torch.tensor([[5, 9, 2]])), plain)


def hostile():
    """For tests/hostile.py."""
    base = str(np.load(GOLDEN / "lora_qv.npz")["base"])

    def attempt(tmp_path, config=lambda c: None, tensors=lambda t: None, after=lambda p: None):
        folder = broken(tmp_path, config, tensors)
        after(folder)
        load_adapter(load_model(GOLDEN / base), folder)

    def option(key, value):
        return {"config": lambda data: data.update({key: value})}

    def instead(name, content):
        def make(folder):
            (folder / name).unlink()
            if callable(content):
                content(folder / name)
            else:
                (folder / name).write_bytes(content)

        return {"after": make}

    def grow(tensors):
        for key in tensors:
            tensors[key] = torch.cat([tensors[key]] * 2)

    def turn(tensors):
        for key in tensors:
            tensors[key] = tensors[key].T.contiguous()

    def drop(tensors):
        del tensors[next(iter(tensors))]

    def nothing(tensors):
        tensors.clear()

    def add(tensors):
        tensors["base_model.model.x.lora_A.weight"] = torch.zeros(2, 2)

    def to_bool(tensors):
        for key in tensors:
            tensors[key] = tensors[key] > 0

    def to_bytes(tensors):
        for key in tensors:
            tensors[key] = tensors[key].to(torch.uint8)

    raw = (GOLDEN / "lora_qv" / CONFIG).read_bytes()
    cases = {
        f"adapter {key} {value!r} {number}": (option(key, value), code)
        for number, (key, value, code) in enumerate(BAD_OPTIONS)
    }
    cases |= {
        "200,000 target modules": (
            option("target_modules", [f"{i % 1000:03}" for i in range(149_000)]), "unknown-field",
        ),
        "a module named 90,000 times": (
            option("target_modules", ["k_proj"] * 90_000), "shape-mismatch",
        ),
        "330,000 layers": (
            option("layers_to_transform", [i % 1000 for i in range(200_000)] + ["x"]),
            "unknown-field",
        ),
        "40,000 ranks": (option("rank_pattern", {f"q{i:x}.a": 1 for i in range(40_000)} | {
            "q_proj": 2}), "shape-mismatch"),
        "20,000 patterns": (option("alpha_pattern", {f"{i:x}.*b.*": 1 for i in range(20_000)}),
                            "unknown-field"),
        "a pattern that runs away": (option("alpha_pattern", {"(" * 20 + "a" + "*)*" * 20: 1,
                                                              "((.*){99}){99}": 1}),
                                     "unknown-field"),
        "a deep pattern": (option("alpha_pattern", {"(" * 300_000: 1}), "unknown-field"),
        "rank 1024 of nothing": ({"config": lambda c: c.update(r=1024), "tensors": nothing},
                                 "shape-mismatch"),
        "truth values": ({"tensors": to_bool}, "bad-dtype"),
        "bytes": ({"tensors": to_bytes}, "bad-dtype"),
        "131,071 virtual tokens": ({"config": lambda c: c.update(
            peft_type="PROMPT_TUNING", num_virtual_tokens=131_071)}, "unknown-field"),
        "100,000 unknown options": (
            {"config": lambda c: c.update({f"{i:x}": 1 for i in range(80_000)})}, "unknown-field",
        ),
        "another prefix": ({"tensors": rename}, "shape-mismatch"),
        "a tensor less": ({"tensors": drop}, "shape-mismatch"),
        "a tensor more": ({"tensors": add}, "shape-mismatch"),
        "no tensors": ({"tensors": nothing}, "shape-mismatch"),
        "tensors turned": ({"tensors": turn}, "shape-mismatch"),
        "tensors twice as high": ({"tensors": grow}, "shape-mismatch"),
        "no configuration": ({"after": lambda p: (p / CONFIG).unlink()}, "config"),
        "a configuration of nothing": (instead(CONFIG, b""), "bad-json"),
        "a configuration that is a list": (instead(CONFIG, b"[]"), "bad-type"),
        "half a configuration": (instead(CONFIG, raw[: len(raw) // 2]), "bad-json"),
        "a field twice": (instead(CONFIG, raw.rstrip()[:-1] + b',"r":2}'), "dup-key"),
        "NaN as alpha": (instead(CONFIG, raw.replace(b'"r":', b'"x":NaN,"r":')), "bad-json"),
        "a configuration that is a pipe": (instead(CONFIG, os.mkfifo), "bad-path"),
        "a configuration over a megabyte": (instead(CONFIG, b" " * (1 << 20) + raw), "too-large"),
        "no tensor file": ({"after": lambda p: (p / TENSORS).unlink()}, "bad-path"),
        "a tensor file of nothing": (instead(TENSORS, b""), "truncated"),
        "a pickle as tensor file": (instead(TENSORS, b"\x80\x02}q\0." + bytes(9)), "too-large"),
    }  # fmt: skip
    return {name: (partial(attempt, **how), code) for name, (how, code) in cases.items()}


def test_a_state_from_before_a_field_was_there_has_its_default(tmp_path):
    def older(metadata):
        config = json.loads(metadata["config"])
        del config["tokens"], config["token_rows"]
        metadata["config"] = json.dumps(config)

    folder = edited_state(tmp_path, "pissa", metadata=older)
    model = load_adapter(load_model(GOLDEN / "llama_gqa"), folder, trainable=True)
    assert config_of(model).tokens == ()
    assert trainable(model)
