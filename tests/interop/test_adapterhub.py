"""AdapterHub's folders: the library's against its numbers, ours there and back, hostile ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.checkpoints.families import FAMILIES
from minift.checkpoints.open import load_model
from minift.cli.main import main
from minift.errors import ConfigError, FormatError
from minift.formats import safetensors
from minift.interop import adapterhub
from minift.interop.adapter_files import load_adapter, save_adapter, stored
from minift.peft.adapters import config_of, disabled, names, trainable
from minift.peft.bottleneck import Bottleneck
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.peft.slots import changes

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted((GOLDEN / "adapterhub").iterdir())
FAMILY_FOLDERS = [*sorted((GOLDEN / "families").iterdir()), GOLDEN / "llama_gqa"]
TOKENS = (torch.arange(27).view(3, 9) * 17 + 5) % 46 + 1
MASK = torch.arange(9) < torch.tensor([[9], [5], [1]])
NAMED = {"ids": lambda path: path.name}


def chirp(shape):
    """Of tests/golden/make_adapterhub.py: what the outputs are multiplied by."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + 1
    return torch.sin(0.0137 * i * i + 0.7 * i + 99).reshape(shape)


def golden(folder):
    data = np.load(folder / "golden.npz")
    return data, load_model(GOLDEN / str(data["base"])).eval()


def given(data, case):
    tokens, mask = (torch.from_numpy(data[f"{case}.{key}"]) for key in ("tokens", "mask"))
    return tokens, mask.bool()


def close(mine, theirs):
    """Within 1e-5 of the largest number, or of 1."""
    theirs = torch.from_numpy(theirs)
    assert mine.shape == theirs.shape
    return float((mine.detach() - theirs).abs().max()) <= 1e-5 * max(1, float(theirs.abs().max()))


# ---- what the library wrote ----------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS, **NAMED)
def test_outputs_and_gradients_equal_the_library(folder):
    data, model = golden(folder)
    load_adapter(model, folder, trainable=True)
    about = stored(folder)
    prefix = "" if model.config.head == "none" else FAMILIES[model.config.family].prefix
    slots = adapterhub.slots(model, about.config(), about.data["name"], prefix)
    there = {path: change for path, _, change in changes(model)}
    for case in data["cases"]:
        tokens, mask = given(data, case)
        model.zero_grad()
        out = model(tokens, mask=mask)
        out = out * mask[:, :, None] if out.dim() == 3 else out
        (out * chirp(out.shape)).sum().backward()
        assert close(out, data[f"{case}.out"])
        kept = [key for key in data if key.startswith(f"{case}.grad.")]
        assert kept == [f"{case}.grad.{key}" for key in slots]
        for key, (path, leaf, _) in slots.items():
            assert close(there[path].get_parameter(leaf).grad, data[f"{case}.grad.{key}"]), key
        assert np.abs(data[f"{case}.out"] - data[f"{case}.plain"]).max() > 0.1
        if model.config.head == "label":
            continue  # the base's head is another than the adapter's own
        with torch.no_grad(), disabled(model):
            out = model(tokens, mask=mask) * mask[:, :, None]
        assert close(out, data[f"{case}.plain"])


def test_goldens_are_of_all_designs_and_both_kinds_of_file():
    found = [
        (stored(folder).config().design, stored(folder).data["model_type"]) for folder in FOLDERS
    ]
    for family in ("bert", "gpt2", "llama"):
        assert {design for design, kind in found if kind == family} == {
            "houlsby", "pfeiffer", "parallel",
        }  # fmt: skip
    kinds = {path.name for folder in FOLDERS for path in folder.iterdir()}
    assert {*adapterhub.TENSORS, *adapterhub.HEAD, adapterhub.HEAD_CONFIG} <= kinds


@pytest.mark.parametrize("folder", FOLDERS, **NAMED)
def test_what_the_library_wrote_is_written_again(folder, tmp_path):
    _, model = golden(folder)
    load_adapter(model, folder, name=stored(folder).data["name"])
    save_adapter(model, tmp_path / "again")
    one, other = stored(folder), stored(tmp_path / "again")
    assert one.config() == other.config()
    mine = {k: v for k, v in other.data.items() if k != "config"}
    assert {k: mine[k] for k in one.data if k in mine and k != "model_name"} == {
        k: v for k, v in one.data.items() if k not in ("config", "model_name")
    }
    assert {k: v for k, v in one.data["config"].items() if k in other.data["config"]} | {
        "init_weights": "mam_adapter"
    } == other.data["config"]
    before, after = one.opened(), other.opened()
    assert set(before.tensors) == set(after.tensors)
    assert all(torch.equal(before.load(key), after.load(key)) for key in before.tensors)


def test_about_a_folder():
    found = stored(GOLDEN / "adapterhub" / "llama_houlsby")
    assert found.base == "llama_gqa"
    assert found.summary() == "houlsby bottlenecks of D/8 on attn,mlp"
    assert found.config() == Bottleneck("houlsby", 8, "gelu", 1.0, 0.0, ("attn", "mlp"))
    assert len(found.opened().tensors) == 3 * 2 * 4


def test_the_command_line_tells_about_it(capsys):
    folder = GOLDEN / "adapterhub" / "bert_pfeiffer"  # a .bin
    assert main(["info", str(folder)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "pfeiffer bottlenecks of D/5 on mlp" in text
    assert "440 parameters in 8 tensors · base bert" in text


# ---- ours, there and back ------------------------------------------------------------------------


def perturbed(model, config=None, seed=1):
    attach(model, config or Bottleneck("houlsby", 5, "tanh", 0.5), name="toy")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.parametrize("base", FAMILY_FOLDERS, **NAMED)
@torch.no_grad()
def test_saved_and_loaded_is_the_same_for_every_family(base, tmp_path):
    model = perturbed(load_model(base).eval())
    save_adapter(model, tmp_path / "a")
    again = load_adapter(load_model(base).eval(), tmp_path / "a", name="other")
    assert torch.equal(model(TOKENS, mask=MASK), again(TOKENS, mask=MASK))
    assert not trainable(again)
    save_adapter(again, tmp_path / "b")
    save_adapter(load_adapter(load_model(base), tmp_path / "b", name="toy"), tmp_path / "c")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "c" / file.name).read_bytes(), file.name
    labels = model.config.head == "label"
    assert (tmp_path / "a" / "head_config.json").exists() == labels


@pytest.mark.parametrize("design", ["houlsby", "pfeiffer", "parallel"])
@torch.no_grad()
def test_every_design_comes_back(design, tmp_path):
    config = Bottleneck(design, 2.5, "gelu_tanh", -2, 0.25, ("attn",))
    model = perturbed(load_model(GOLDEN / "llama_gqa").eval(), config)
    save_adapter(model, tmp_path / "a")
    again = load_adapter(load_model(GOLDEN / "llama_gqa").eval(), tmp_path / "a")
    assert config_of(again) == config
    assert torch.equal(model(TOKENS), again(TOKENS))


def test_training_goes_on_from_a_file(tmp_path):
    model = perturbed(load_model(GOLDEN / "llama_gqa"))
    save_adapter(model, tmp_path / "a")
    again = load_adapter(load_model(GOLDEN / "llama_gqa"), tmp_path / "a", trainable=True)
    assert len(trainable(again)) == len(trainable(model)) == 3 * 2 * 4


def test_on_a_bf16_base_the_file_is_float32(tmp_path):
    base = load_model(GOLDEN / "llama_gqa", dtype=torch.bfloat16)
    save_adapter(perturbed(base), tmp_path / "a")
    assert {entry.dtype for entry in stored(tmp_path / "a").opened().tensors.values()} == {
        torch.float32
    }


@torch.no_grad()
def test_keys_without_the_prefix_of_the_body(tmp_path):
    # The library writes them so from a model without a head, and loads them into one with a head.
    folder = copied("bert_houlsby", tmp_path)
    file = safetensors.read(folder / "adapter.safetensors")
    short = {key.removeprefix("bert."): file.load(key).clone() for key in file.tensors}
    safetensors.write(folder / "adapter.safetensors", short)
    models = [load_model(GOLDEN / "families" / "bert").eval() for _ in range(2)]
    one = load_adapter(models[0], folder)(TOKENS, mask=MASK)
    two = load_adapter(models[1], GOLDEN / "adapterhub" / "bert_houlsby")(TOKENS, mask=MASK)
    assert torch.equal(one, two)


def test_pefts_folders_are_still_pefts(tmp_path):
    model = attach(load_model(GOLDEN / "llama_gqa"), LoRA(rank=2))
    save_adapter(model, tmp_path / "lora")
    assert not isinstance(stored(tmp_path / "lora"), adapterhub.Stored)


# ---- folders that are refused --------------------------------------------------------------------


def copied(name, tmp_path):
    return Path(shutil.copytree(GOLDEN / "adapterhub" / name, tmp_path / name))


def rewritten(folder, file="adapter_config.json", **values):
    """Another value in a JSON file; dots go inside, ... takes a key out."""
    data = json.loads((folder / file).read_text())
    for path, value in values.items():
        *outer, key = path.split("__")
        place = data
        for word in outer:
            place = place[word]
        if value is ...:
            del place[key]
        else:
            place[key] = value
    (folder / file).write_text(json.dumps(data))
    return folder


def refusal(folder, base="llama_gqa", **options):
    """What load_adapter says, and nothing is attached."""
    model = load_model(GOLDEN / base)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    with pytest.raises(FormatError) as caught:
        load_adapter(model, folder, **options)
    assert not names(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ln_before", True, "ln_before is True, which minift does not have"),
        ("ln_after", True, "ln_after is True, which"),
        ("use_gating", True, "use_gating is True, which"),
        ("use_gating", 1, "use_gating is 1, which"),
        ("inv_adapter", "nice", "inv_adapter is nice, which"),
        ("cross_adapter", True, "cross_adapter is True, which"),
        ("leave_out", [0], "leave_out is [0], which"),
        ("phm_layer", True, "phm_layer is True, which"),
        ("stochastic_depth", 0.1, "stochastic_depth is 0.1, which"),
        ("architecture", "lora", "architecture is lora, which"),
        ("invented", 1, "invented is 1, which minift does not know"),
        ("original_ln_after", False, "original_ln_after is false, which"),
        ("original_ln_after", 1, "original_ln_after is 1, not true or false"),
        ("residual_before_ln", "post_add", "residual_before_ln is post_add, which"),
        ("non_linearity", "leakyrelu", "non_linearity is leakyrelu, not one of relu, swish"),
        ("non_linearity", None, "non_linearity is None, not one of"),
        ("scaling", "learned", "scaling is learned, not a number"),
        ("scaling", 0.0, "bottleneck_scale: found 0.0, allowed a number other than 0"),
        ("reduction_factor", {"0": 8, "default": 4}, "not a number"),
        ("reduction_factor", 0, "reduction: found 0.0, allowed"),
        ("reduction_factor", 1e-300, "reduction: found 1e-300, allowed"),
        ("reduction_factor", ..., "reduction_factor is None, not a number"),
        ("dropout", 1.0, "bottleneck_dropout: found 1.0, allowed"),
        ("dropout", [], "dropout is [], not a number"),
        ("mh_adapter", ..., "mh_adapter is missing"),
        ("output_adapter", "yes", "output_adapter is yes, not true or false"),
    ],
)
def test_options_that_are_refused(key, value, message, tmp_path):
    folder = rewritten(copied("llama_houlsby", tmp_path), **{f"config__{key}": value})
    assert message in refusal(folder)


def test_a_pfeiffer_with_another_residual_is_refused(tmp_path):
    folder = rewritten(copied("llama_pfeiffer", tmp_path), config__residual_before_ln=False)
    assert "residual_before_ln is False, which minift does not have" in refusal(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"config__init_weights": "houlsby", "config__init_weights_seed": 3},
        {"config__phm_dim": 8, "config__inv_adapter_reduction_factor": 2},
        {"config__leave_out": None, "config__stochastic_depth": 0, "config__architecture": None},
        {"config__adapter_residual_before_ln": True, "config__residual_before_ln": False},
        {"config__non_linearity": "GELU", "config__scaling": 1},
        {"version": "3.2.1", "type": "text_task", "notes": {"of": "a trainer"}},
        {"config__ln_before": ..., "config__is_parallel": ..., "config__dropout": ...},
    ],
)
def test_options_that_say_nothing_are_passed_over(values, tmp_path):
    folder = rewritten(copied("llama_houlsby", tmp_path), **values)
    assert stored(folder).config() == stored(GOLDEN / "adapterhub" / "llama_houlsby").config()


def test_no_adapters_at_all_are_refused(tmp_path):
    both = {"config__mh_adapter": False, "config__output_adapter": False}
    assert "no adapters at all" in refusal(rewritten(copied("llama_houlsby", tmp_path), **both))


def test_all_problems_of_the_options_at_once(tmp_path):
    folder = copied("llama_houlsby", tmp_path)
    wrong = {"config__ln_after": True, "config__scaling": "channel", "name": "", "version": ...}
    (folder / "adapter_interface.json").write_text("{}")
    text = refusal(rewritten(folder, config__what="x" * 10_000, **wrong))
    assert len(text.splitlines()) == 7
    assert max(map(len, text.splitlines())) < 500
    for word in ("ln_after", "scaling", "name", "version", "what", "adapter_interface.json"):
        assert f"\n  {word} is" in text


def test_a_config_of_nobody_is_refused(tmp_path):
    folder = rewritten(copied("llama_houlsby", tmp_path), config="pfeiffer")
    assert "peft_type: found no such key" in refusal(folder)


def changed(name, tmp_path, change):
    """The folder with other tensors."""
    folder = copied(name, tmp_path)
    path = folder / "adapter.safetensors"
    file = safetensors.read(path)
    tensors = {key: file.load(key).clone() for key in file.tensors}
    change(tensors)
    path.unlink()
    safetensors.write(path, tensors)
    return folder


KEY = "model.layers.1.output_adapters.adapters.toy.adapter_down.0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), f"missing {KEY}"),
        (lambda t: t.update({KEY + "s": torch.ones(1)}), f"unexpected {KEY}s"),
        (lambda t: t.update({KEY: t[KEY].T.contiguous()}), f"{KEY} is (24, 3), not (3, 24)"),
        (lambda t: t.update({KEY: t[KEY].int()}), f"{KEY} is torch.int32, not floating point"),
        (lambda t: t[KEY].view(-1)[5:6].fill_(float("nan")), f"{KEY}: found NaN or infinity"),
    ],
    ids=["missing", "unexpected", "transpose", "whole numbers", "NaN"],
)
def test_tensors_that_are_refused(change, message, tmp_path):
    assert message in refusal(changed("llama_houlsby", tmp_path, change))


def test_all_problems_of_the_tensors_at_once(tmp_path):
    folder = rewritten(copied("llama_houlsby", tmp_path), name="other")
    text = refusal(folder)
    assert text.count("missing ") == text.count("unexpected ") == 3 * 2 * 4


def test_an_adapter_of_another_base_is_refused():
    text = refusal(GOLDEN / "adapterhub" / "gpt2_houlsby", "llama_gqa")
    assert "unexpected transformer.h.0.attention_adapters" in text
    text = refusal(GOLDEN / "adapterhub" / "bert_houlsby", "families/bert_body")
    assert "missing bert.encoder.layer.2.attention.output.adapters.toy.adapter_up" in text


def test_half_precision_is_read(tmp_path):
    def halve(tensors):
        tensors.update({key: tensor.half() for key, tensor in tensors.items()})

    model = load_adapter(
        load_model(GOLDEN / "llama_gqa"), changed("llama_houlsby", tmp_path, halve)
    )
    assert all(p.dtype == torch.float32 for _, _, c in changes(model) for p in c.parameters())


def test_an_adapter_that_changes_nothing_is_refused(tmp_path):
    def silence(tensors):
        for key, tensor in tensors.items():
            if "adapter_up" in key:
                tensor.zero_()

    folder = changed("llama_houlsby", tmp_path, silence)
    assert "an adapter that changes nothing" in refusal(folder)
    assert trainable(load_adapter(load_model(GOLDEN / "llama_gqa"), folder, trainable=True))


def test_which_file_holds_the_tensors(tmp_path):
    folder = copied("llama_houlsby", tmp_path)
    shutil.copy(GOLDEN / "adapterhub" / "llama_parallel" / "pytorch_adapter.bin", folder)
    message = "found adapter.safetensors and pytorch_adapter.bin, allowed one of"
    assert message in refusal(folder)
    for name in adapterhub.TENSORS:
        (folder / name).unlink()
    assert "tensors: found none, allowed one of" in refusal(folder)


def test_a_name_is_taken_once():
    model = load_adapter(load_model(GOLDEN / "llama_gqa"), GOLDEN / "adapterhub" / "llama_houlsby")
    with pytest.raises(ConfigError, match="already"):
        load_adapter(model, GOLDEN / "adapterhub" / "llama_parallel")
    assert names(model) == ["default"]
    assert config_of(model) == stored(GOLDEN / "adapterhub" / "llama_houlsby").config()


@pytest.mark.parametrize("folder", FOLDERS, **NAMED)
def test_every_cut_of_a_file_is_refused(folder, tmp_path):
    name = str(np.load(folder / "golden.npz")["base"])
    folder = copied(folder.name, tmp_path)
    path = next(folder / file for file in adapterhub.TENSORS if (folder / file).exists())
    raw = path.read_bytes()
    for size in (0, 7, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        refusal(folder, name)


# ---- heads ---------------------------------------------------------------------------------------


def head_changed(folder, change):
    path = folder / "model_head.safetensors"
    file = safetensors.read(path)
    tensors = {key: file.load(key).clone() for key in file.tensors}
    change(tensors)
    path.unlink()
    safetensors.write(path, tensors)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.bias"), "missing classifier.bias"),
        (lambda t: t.update({"x": torch.ones(1)}), "unexpected x"),
        (lambda t: t.update({"classifier.bias": torch.ones(4)}), "is (4,), not (3,)"),
        (lambda t: t["classifier.bias"].fill_(float("inf")), "classifier.bias: found NaN"),
    ],
    ids=["missing", "unexpected", "shape", "infinite"],
)
def test_heads_that_do_not_fit_are_refused(change, message, tmp_path):
    folder = head_changed(copied("bert_labels", tmp_path), change)
    assert message in refusal(folder, "families/bert_labels")


def test_a_flexible_head_is_refused(tmp_path):
    folder = rewritten(
        copied("bert_labels", tmp_path), "head_config.json", config={"head_type": "classification"}
    )
    text = refusal(folder, "families/bert_labels")
    assert "not null: a head that no model of minift has" in text
    assert (
        "without head_config.json, model_head.safetensors the folder would be the adapter" in text
    )


def test_labels_in_another_order_are_refused(tmp_path):
    folder = copied("bert_labels", tmp_path)
    own = {"bad": 0, "fair": 1, "good": 2}
    rewritten(folder, "head_config.json", label2id=own)
    load_adapter(load_model(GOLDEN / "families" / "bert_labels"), folder)
    rewritten(folder, "head_config.json", label2id={"good": 0, "fair": 1, "bad": 2})
    assert "label2id is {'good': 0" in refusal(folder, "families/bert_labels")


def test_a_language_head_must_be_the_bases(tmp_path):
    folder = head_changed(copied("mistral", tmp_path), lambda t: t["lm_head.weight"][3].add_(1))
    assert "lm_head.weight is not the base's" in refusal(folder, "families/mistral")


def test_a_head_on_a_model_without_one_is_refused(tmp_path):
    folder = copied("bert_body", tmp_path)
    for file in ("head_config.json", "model_head.safetensors"):
        shutil.copy(GOLDEN / "adapterhub" / "bert_labels" / file, folder)
    assert "classifier.weight is not the base's" in refusal(folder, "families/bert_body")


def test_half_a_head_is_refused(tmp_path):
    folder = copied("bert_labels", tmp_path)
    (folder / "head_config.json").unlink()
    assert "head_config.json" in refusal(folder, "families/bert_labels")
    folder = copied("llama_labels", tmp_path)
    (folder / "model_head.safetensors").unlink()
    assert "found none, allowed one of model_head" in refusal(folder, "families/llama_labels")


@torch.no_grad()
def test_without_head_files_the_head_is_the_bases(tmp_path):
    folder = copied("bert_labels", tmp_path)
    for file in ("head_config.json", "model_head.safetensors"):
        (folder / file).unlink()
    model = load_adapter(load_model(GOLDEN / "families" / "bert_labels"), folder)
    own = {path: change for path, _, change in changes(model)}["head"].head
    assert torch.equal(own.out.weight, model.head.out.weight)
