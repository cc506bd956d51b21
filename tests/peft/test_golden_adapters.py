"""Adapters that PEFT wrote (tests/golden/make_peft.py): its outputs, and all of its gradients."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import FormatError
from minift.formats import safetensors
from minift.interop import head
from minift.interop.adapter_files import (
    PREFIX,
    TENSORS,
    load_adapter,
    own_changes,
    save_adapter,
    stored,
)
from minift.interop.methods import FORMATS
from minift.interop.module_names import ModuleNames
from minift.interop.peft_format import SoftPromptFormat
from minift.interop.token_rows import LEAF
from minift.peft import lora
from minift.peft.adapters import config_of, trainable
from minift.peft.merge import merge
from minift.peft.methods import attach
from minift.peft.token_rows import TableRows

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = {folder.name: folder for folder in sorted((GOLDEN / "peft").iterdir())}
SOFT = ("prompt-", "ptuning", "prefix")
# PEFT's modules of an encoder -> ours.
ENCODERS = {"embedding.weight": "start", "mlp_head": "layers", "lstm_head": "lstm",
            "transform": "network"}  # fmt: skip


def chirp(shape, seed):
    """As in make_llama.py."""
    i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) + 1
    return torch.sin(0.0137 * i * i + 0.7 * i + seed).reshape(shape)


@cache
def golden(name):
    with np.load(FOLDERS[name] / "golden.npz") as data:
        return dict(data)


def base(name, dtype=torch.float64):
    return load_model(GOLDEN / str(golden(name)["base"]), dtype=dtype).eval()


def loaded(name, dtype=torch.float64, **options):
    return load_adapter(base(name, dtype), FOLDERS[name], **options)


def batches(name):
    """(what the model is given, PEFT's output, which positions are real)"""
    data = golden(name)
    for case in data["cases"]:
        if f"{case}.tokens" not in data:
            assert (case, str(data["base"])) == ("left", "families/bert_labels")
            continue
        tokens, mask = (torch.from_numpy(data[f"{case}.{key}"]) for key in ("tokens", "mask"))
        given = {"tokens": tokens, "mask": mask.bool()}
        if f"{case}.types" in data:
            given["token_types"] = torch.from_numpy(data[f"{case}.types"])
        yield given, torch.from_numpy(data[f"{case}.out"]), mask.bool()


def real(out, mask):
    return out[mask] if out.dim() == 3 else out


def close(got, expected, tolerance):
    """Relative to the largest number."""
    size = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * size)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_outputs_equal_pefts(name, dtype, limit):
    """PEFT's numbers are float64, its encoders' tokens float32."""
    model = loaded(name, dtype)
    for given, expected, mask in batches(name):
        with torch.no_grad():
            got = model(**given)
        rounded = dtype == torch.float32 or name.startswith(("prefix_mlp", "ptuning"))
        close(real(got, mask).double(), real(expected, mask), limit if rounded else 1e-10)


@pytest.mark.parametrize("name", [name for name in FOLDERS if not name.startswith(SOFT)])
def test_merged_outputs_equal_pefts_too(name):
    model = merge(loaded(name))
    for given, expected, mask in batches(name):
        with torch.no_grad():
            got = model(**given)
        close(real(got, mask), real(expected, mask), 1e-10)


@pytest.mark.parametrize("name", FOLDERS)
def test_saved_again_it_is_pefts_file(name, tmp_path):
    save_adapter(loaded(name, torch.float32), tmp_path / "a")
    mine = safetensors.read(tmp_path / "a" / TENSORS)
    theirs = safetensors.read(FOLDERS[name] / TENSORS)
    # The base's own embeddings, which PEFT adds, are not written.
    base_own = (".base_layer.weight", "lm_head.weight", "predictions.decoder.weight")
    base_own = (*base_own, "predictions.decoder.bias")
    wanted = {key for key in theirs.tensors if not key.endswith(base_own)}
    assert mine.tensors.keys() == wanted
    for key in wanted:
        assert torch.equal(mine.load(key), theirs.load(key)), key


def trained(name):
    """The adapter in training: soft prompts with PEFT's encoder, which its file does not have."""
    data = golden(name)
    encoder = [key for key in data if key.startswith("prompt_encoder.") and "_token" not in key]
    if not encoder:
        return loaded(name, trainable=True)
    model = loaded(name)
    heads = head.tensors(model, "default")
    model = attach(base(name), stored(FOLDERS[name]).config())
    with torch.no_grad():
        for path, parameter in head.tensors(model, "default").items():
            parameter.copy_(heads[path])
        for key in encoder:
            encoder_parameter(model, key).copy_(torch.from_numpy(data[key]))
    return model


def encoder_parameter(model, key):
    part, name = model.adapters.parts["default"], key.removeprefix("prompt_encoder.")
    if name == "embedding.weight":
        leaf = "prompt" if hasattr(part, "prompt") and part.prompt is not None else "start"
        return part.get_parameter(leaf)
    for theirs, ours in ENCODERS.items():
        name = name.replace(theirs, ours)
    return part.get_parameter(name)


def gradients(model):
    """Ours under the names of PEFT's, and joined as theirs are."""
    found = {}
    for theirs in ModuleNames(model).of(own_changes(model, "default")):
        parts = [own_changes(model, "default")[path] for path in theirs.ours]
        at = f"{PREFIX}{theirs.path}."
        if isinstance(parts[0], TableRows):
            found[at + LEAF] = parts[0].rows.grad
        elif isinstance(parts[0], lora.LoRAEmbedding):
            found[at + "lora_embedding_A"] = parts[0].A.grad
            found[at + "lora_embedding_B"] = parts[0].B.grad
        elif isinstance(parts[0], lora.LoRALayer):
            # HFModule is one A for q, k and v, ours three with the same numbers.
            found[at + "lora_A.weight"] = torch.stack([part.A.grad for part in parts]).sum(0)
            found[at + "lora_B.weight"] = theirs.join([part.B.grad for part in parts])
            if parts[0].magnitude is not None:
                found[at + "lora_magnitude_vector.weight"] = theirs.join(
                    [p.magnitude.grad for p in parts]
                )
        elif parts[0].side == "in":
            found[at + "ia3_l"] = parts[0].l.grad[None]
        else:
            found[at + "ia3_l"] = theirs.join([part.l.grad for part in parts])[:, None]
    return found


@pytest.mark.parametrize("name", FOLDERS)
def test_every_gradient_equals_pefts(name):
    model, data, total = trained(name), golden(name), torch.zeros(())
    for given, expected, mask in batches(name):
        out = model(**given)
        close(real(out, mask), real(expected, mask), 1e-10)
        if out.dim() == 3:
            out = out * mask[:, :, None]
        total = total + (out * chirp(out.shape, 99)).sum()
    total.backward()
    mine = gradients(model)
    soft = isinstance(FORMATS[type(config_of(model))], SoftPromptFormat)
    prefix = "base_model." if soft else PREFIX
    mine |= {prefix + path: p.grad for path, p in head.tensors(model, "default").items()}
    wanted = {key.removeprefix("grad."): key for key in data if key.startswith("grad.")}
    for key in wanted:
        if key.startswith("prompt_encoder."):
            mine[key] = encoder_parameter(model, key).grad
    assert mine.keys() == wanted.keys()
    for key, where in wanted.items():
        close(mine[key], torch.from_numpy(data[where]), 1e-9)
    learned = sum(parameter.grad is not None for parameter in model.parameters())
    assert learned == len(trainable(model))


def edited(name, tmp_path, edit):
    folder = tmp_path / "adapter"
    shutil.copytree(FOLDERS[name], folder)
    file = safetensors.read(folder / TENSORS)
    changed = {key: file.load(key) for key in file.tensors}
    edit(changed)
    safetensors.write(folder / TENSORS, changed)
    return folder


def test_embeddings_in_the_file_take_the_place_of_the_base_s(tmp_path):
    """PEFT writes them beside a LoRA of them, and loads them over the base's own."""

    def edit(tensors):
        (key,) = [key for key in tensors if key.endswith("embed_tokens.base_layer.weight")]
        tensors[key][3, 1] += 0.5

    folder, tokens = edited("lora_whole-llama", tmp_path, edit), torch.tensor([[3, 5]])
    plain = load_adapter(base("lora_whole-llama"), FOLDERS["lora_whole-llama"])
    other = load_adapter(base("lora_whole-llama"), folder)
    apart = other.embed(tokens) - plain.embed(tokens)
    assert float(apart[0, 0, 1].detach()) == pytest.approx(0.5)
    assert int((apart.abs() > 1e-6).sum()) == 1


def test_a_label_head_that_is_promised_must_be_there(tmp_path):
    def edit(tensors):
        del tensors["base_model.model.classifier.bias"]

    folder = edited("lora-bert_labels", tmp_path, edit)
    with pytest.raises(FormatError, match=r"missing base_model\.model\.classifier\.bias"):
        load_adapter(base("lora-bert_labels"), folder)
    adapted = load_adapter(base("lora-bert"), FOLDERS["lora-bert_labels"])
    assert adapted.config.head == "label"  # it brings its own
