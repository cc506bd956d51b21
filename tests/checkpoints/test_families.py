"""Families as data: every one against transformers' numbers, and its rows in both directions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.checkpoints import safetensors
from minift.checkpoints.families import (
    FAMILIES,
    GGUF_FAMILIES,
    config_from_gguf,
    config_from_json,
    config_to_json,
    family_of,
    prefix_in,
)
from minift.checkpoints.mapping import HOW, pairs
from minift.checkpoints.open import load_model
from minift.checkpoints.save import folder_files
from minift.errors import FormatError
from minift.model.transformer import Transformer

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = sorted((GOLDEN / "families").iterdir())
ALL = [*FOLDERS, GOLDEN / "llama_gqa", GOLDEN / "llama_biased"]
CASES = ("plain", "one", "right", "left", "long")


def named(folders):
    return [pytest.param(folder, id=folder.name) for folder in folders]


def config_of(folder):
    data = json.loads((folder / "config.json").read_text())
    names = safetensors.read(folder / "model.safetensors").tensors
    return config_from_json(data, "config.json", names)


def test_every_family_has_two_shapes():
    found = [config_of(folder).family for folder in ALL]
    assert set(found) == set(FAMILIES)
    assert min(map(found.count, FAMILIES)) >= 2


@pytest.mark.parametrize("folder", named(FOLDERS))
@pytest.mark.parametrize("case", CASES)
def test_hidden_states_and_outputs_equal_transformers(folder, case):
    data = np.load(folder / "golden.npz")
    if case not in data["cases"]:  # an encoder with labels: see test_heads.py
        assert case == "left"
        assert load_model(folder).config.pool == "first"
        return
    model, states = load_model(folder), []
    mask = torch.from_numpy(data[f"{case}.mask"])
    given = {"tokens": torch.from_numpy(data[f"{case}.tokens"]), "mask": mask.bool()}
    if f"{case}.types" in data:
        given["token_types"] = torch.from_numpy(data[f"{case}.types"])
    model.blocks[0].register_forward_pre_hook(lambda m, inputs: states.append(inputs[0]))
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, o: states.append(o))
    with torch.no_grad():
        out = model(**given)
        del states[-1]
        seen = list(states)
        seen.append(model(**given, hidden_only=True))
    expected = torch.from_numpy(data[f"{case}.hidden"])
    assert len(seen) == len(expected)
    for mine, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(mine[mask.bool()], theirs[mask.bool()], rtol=1e-5, atol=1e-4)
    if f"{case}.out" not in data:
        assert model.head is None
        return
    scores = torch.from_numpy(data[f"{case}.out"])
    real = mask.bool() if scores.dim() == 3 else slice(None)
    torch.testing.assert_close(out[real], scores[real], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("folder", named(FOLDERS))
def test_gradients_equal_transformers(folder):
    data = np.load(folder / "golden.npz")
    model = load_model(folder, dtype=torch.float64)
    mask = torch.from_numpy(data["right.mask"]).bool()
    given = {"tokens": torch.from_numpy(data["right.tokens"]), "mask": mask}
    if "right.types" in data:
        given["token_types"] = torch.from_numpy(data["right.types"])
    out = model(**given)
    if out.dim() == 3:
        out = out * mask[:, :, None]
    i = torch.arange(out.numel(), dtype=torch.float64) + 1
    (out * torch.sin(0.0137 * i * i + 0.7 * i + 99).reshape(out.shape)).sum().backward()
    family = FAMILIES[model.config.family]
    prefix = "" if model.config.head == "none" else family.prefix
    rows = {pair.theirs: pair for pair in pairs(family.folder, model.config, prefix)}
    parameters = dict(model.named_parameters())
    names = [key.removeprefix("right.grad.") for key in data if key.startswith("right.grad.")]
    assert len(names) == 2
    for name in names:
        pair = rows[name]
        mine = HOW[pair.how][1](model.config, [parameters[ours].grad for ours in pair.ours])
        theirs = torch.from_numpy(data[f"right.grad.{name}"]).double()
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=3e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("folder", named(ALL))
def test_what_is_loaded_is_saved_bit_for_bit(folder, tmp_path):
    model = load_model(folder)
    files = folder_files(model, {})
    for name, chunks in files.items():
        raw = chunks if isinstance(chunks, bytes) else b"".join(map(bytes, chunks))
        (tmp_path / name).write_bytes(raw)
    one = safetensors.read(folder / "model.safetensors")
    other = safetensors.read(tmp_path / "model.safetensors")
    assert other.tensors.keys() == one.tensors.keys()
    assert all(torch.equal(one.load(n), other.load(n)) for n in one.tensors)
    again = load_model(tmp_path)
    assert again.config == model.config
    for (name, a), (_, b) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("folder", named(ALL))
def test_rows_cover_every_parameter_once(folder):
    config = config_of(folder)
    with torch.device("meta"):
        wanted = {key for key, _ in Transformer(config).named_parameters()}
    rows = pairs(FAMILIES[config.family].folder, config, "")
    found = [ours for pair in rows for ours in pair.ours]
    assert sorted(found) == sorted(wanted)


def fits_gguf(folder):
    """Whether a GGUF file can hold it: a language model with what the architecture fixes."""
    config = config_of(folder)
    fixed = FAMILIES[config.family].gguf_fixed
    there = FAMILIES[config.family].gguf is not None and config.head == "lm"
    return there and all(getattr(config, key) == value for key, value in fixed.items())


@pytest.mark.parametrize("folder", named(filter(fits_gguf, ALL)))
def test_gguf_rows_cover_every_parameter_once(folder):
    config = config_of(folder)
    with torch.device("meta"):
        wanted = {key for key, _ in Transformer(config).named_parameters()}
    layout = FAMILIES[config.family].gguf
    found = [ours for pair in pairs(layout, config, "") for ours in pair.ours]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("folder", named(ALL))
def test_a_config_comes_back(folder):
    config = config_of(folder)
    names = safetensors.read(folder / "model.safetensors").tensors
    assert config_from_json(config_to_json(config, "float32"), "config.json", names) == config


def test_a_file_saved_without_a_head_has_no_prefix():
    gpt2 = FAMILIES["gpt2"]
    assert prefix_in(gpt2, {"transformer.wte.weight": 0}) == "transformer."
    assert prefix_in(gpt2, {"wte.weight": 0}) == ""


def test_an_unknown_family_is_told_the_known_ones():
    with pytest.raises(FormatError, match=r"mamba.*llama, mistral, qwen2"):
        family_of("mamba", FAMILIES, "config.json", "model_type")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architectures": ["LlamaForTokenClassification"]}, "architectures"),
        ({"rope_parameters": {"rope_type": "magic"}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_parameters": [1]}, "an object"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor 0.5"),
        ({"num_attention_heads": 3}, "no multiple"),
        ({"hidden_size": "24"}, "hidden_size is 24, not a whole number"),
        ({"hidden_size": True}, "not a whole number"),
        ({"hidden_act": "step"}, "not one of"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"hidden_size": None, "vocab_size": None}, "2 that do not fit"),
        ({"rms_norm_eps": float("nan")}, "norm_eps"),
        ({"num_hidden_layers": 10**12}, "layers"),
        ({"head_dim": 5}, "even number"),
    ],
)
def test_configs_that_cannot_be_are_refused(change, match):
    data = json.loads((GOLDEN / "llama_gqa" / "config.json").read_text()) | change
    with pytest.raises(FormatError, match=match):
        config_from_json(data, "config.json")


@pytest.mark.parametrize("name", sorted(GGUF_FAMILIES))
def test_a_gguf_file_of_every_family_names_what_it_lacks(name):
    with pytest.raises(FormatError, match="do not fit"):
        config_from_gguf({"general.architecture": name}, {}, "x.gguf")
