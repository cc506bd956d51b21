"""Loading: what fits is loaded bit for bit, what does not is refused with the whole list."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from minift.checkpoints import safetensors
from minift.checkpoints.download import ASSETS
from minift.checkpoints.open import headers, load, load_model, resolve, survey
from minift.errors import ConfigError, FormatError

GOLDEN = Path(__file__).parents[1] / "golden"


def folder(tmp_path, config=lambda c: None, tensors=lambda t: None):
    """llama_gqa with its files edited."""
    place = tmp_path / "model"
    shutil.copytree(GOLDEN / "llama_gqa", place)
    data = json.loads((place / "config.json").read_text())
    config(data)
    (place / "config.json").write_text(json.dumps(data))
    file = safetensors.read(place / "model.safetensors")
    found = {name: file.load(name) for name in file.tensors}
    tensors(found)
    safetensors.write(place / "model.safetensors", found)
    return place


def test_weights_are_the_files_bit_for_bit():
    model = load_model(GOLDEN / "llama_gqa")
    file = safetensors.read(GOLDEN / "llama_gqa/model.safetensors")
    theirs = file.load("model.layers.1.self_attn.k_proj.weight")
    assert torch.equal(model.blocks[1].attn.qkv.k.weight, theirs)
    assert sum(p.numel() for p in model.parameters()) == sum(
        file.load(name).numel() for name in file.tensors
    )


def test_missing_extra_and_misshapen_tensors_are_all_named(tmp_path):
    def edit(tensors):
        del tensors["model.norm.weight"]
        tensors["spare"] = torch.zeros(1)
        tensors["lm_head.weight"] = torch.zeros(2, 2)

    with pytest.raises(FormatError) as caught:
        load_model(folder(tmp_path, tensors=edit))
    text = str(caught.value)
    assert "missing model.norm.weight" in text
    assert "unexpected spare" in text
    assert "lm_head.weight is (2, 2), not (61, 24)" in text


@pytest.mark.parametrize(("key", "value", "text"), [
    ("model_type", "mamba", "a family that minift knows: llama"),
    ("model_type", None, "a family that minift knows"),
    ("hidden_size", "24", "hidden_size is 24, not a whole number"),
    ("hidden_size", 24.0, "not a whole number"),
    ("hidden_size", True, "not a whole number"),
    ("hidden_size", None, "hidden_size is missing"),
    ("num_key_value_heads", 3, "no multiple"),
    ("num_hidden_layers", 10**9, "layers that the file holds"),
    ("num_hidden_layers", -1, "allowed"),
    ("hidden_act", "step", "hidden_act is step, not one of silu"),
    ("quantization_config", {"bits": 4}, "quantization_config"),
    ("rope_parameters", {"rope_type": "ntk", "rope_theta": 1e4}, "default, linear"),
    ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4}, "factor is missing"),
    ("tie_word_embeddings", "yes", "not true or false"),
    ("vocab_size", 10**12, "allowed a whole number"),
])  # fmt: skip
def test_a_config_that_does_not_fit_is_refused(tmp_path, key, value, text):
    def edit(config):
        config[key] = value

    with pytest.raises(FormatError) as caught:
        load_model(folder(tmp_path, config=edit))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value).split(": found")[0]


def test_a_name_that_is_not_here_says_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIFT_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"nearest: smollm2-135m-instruct .*minift download"):
        resolve("smolm2-135m")
    with pytest.raises(ConfigError, match="nearest: smollm2-135m-instruct"):
        resolve("SmolM2")
    with pytest.raises(ConfigError, match="is not downloaded: minift download smollm2"):
        resolve("smollm2-135m-instruct")
    with pytest.raises(ConfigError, match=f"known: {next(iter(ASSETS))}"):
        resolve("zzz")


def test_a_folder_without_weights_and_an_unknown_dtype_are_refused(tmp_path):
    place = folder(tmp_path)
    (place / "model.safetensors").unlink()
    with pytest.raises(FormatError, match=r"allowed model\.safetensors"):
        load_model(place)
    with pytest.raises(ConfigError, match="dtype: found int8"):
        load(place, dtype="int8")


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGML" + bytes(60))
    with pytest.raises(FormatError):
        load(tmp_path / "a.gguf")


@pytest.mark.assets
def test_the_real_checkpoint(asset):
    found = survey(asset("smollm2-135m-instruct"))
    assert found.parameters == 134_515_008
    assert (found.config.layers, found.config.dim, found.config.kv_heads) == (30, 576, 3)
    assert found.chat == "smollm2"
    model, tokenizer = load(asset("smollm2-135m-instruct"))
    ids, _ = tokenizer.chat(
        [{"role": "user", "content": "What is the capital of France?"}], reply=True
    )
    with torch.no_grad():
        best = int(model(torch.tensor([ids]))[0, -1].argmax())
    assert tokenizer.decode([best]) == "The"


def as_bin(place):
    """The folder's weights as PyTorch writes them."""
    file = safetensors.read(place / "model.safetensors")
    torch.save(
        {name: file.load(name).clone() for name in file.tensors}, place / "pytorch_model.bin"
    )


def as_shards(place):
    """The folder's weights in two files and an index."""
    file = safetensors.read(place / "model.safetensors")
    homes = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(file.tensors)}
    for shard in set(homes.values()):
        tensors = {name: file.load(name) for name, home in homes.items() if home == shard}
        safetensors.write(place / shard, tensors)
    index = place / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": homes}))
    (place / "model.safetensors").unlink()


def equal(one, other):
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.parametrize("kind", ["safetensors", "bin", "shards"])
def test_every_form_of_a_folder_gives_the_same_model(tmp_path, kind):
    expected, place = load_model(GOLDEN / "llama_gqa"), folder(tmp_path)
    if kind == "bin":
        as_bin(place)
        (place / "model.safetensors").unlink()
    elif kind == "shards":
        as_shards(place)
    assert equal(load_model(place), expected)
    names = {"bin": "pytorch_model.bin", "shards": "model.safetensors.index.json"}
    assert equal(load_model(place / names.get(kind, "model.safetensors")), expected)
    found = survey(place)
    assert len(found.files) == (2 if kind == "shards" else 1)
    assert set(found.kinds) == {"float32"}
    assert found.parameters == sum(p.numel() for p in expected.parameters())


def test_a_folder_with_two_formats_says_which_is_taken(tmp_path):
    place = folder(tmp_path)
    as_bin(place)
    (place / "extra.gguf").write_bytes(b"GGUF")
    assert survey(place).passed_over == ["pytorch_model.bin", "extra.gguf"]
    assert survey(place).files == [place / "model.safetensors"]


def test_a_folder_of_ggufs(tmp_path):
    with pytest.raises(FormatError, match=r"allowed model\.safetensors"):
        headers(tmp_path)
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGML")
    with pytest.raises(ConfigError, match=r"holds 2 models, name one of them: a\.gguf, b\.gguf"):
        headers(tmp_path)
    (tmp_path / "b.gguf").unlink()
    with pytest.raises(FormatError, match="magic"):
        headers(tmp_path)


def test_a_model_of_the_shared_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ConfigError, match="minift download org/toy"):
        resolve("org/toy")
    commit = "0" * 40
    place = tmp_path / "hub" / "models--org--toy"
    shutil.copytree(GOLDEN / "llama_gqa", place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    assert resolve("org/toy") == place / "snapshots" / commit
    assert equal(load_model("org/toy"), load_model(GOLDEN / "llama_gqa"))
    assert load_model("org/toy").source == "org/toy"


@pytest.mark.parametrize("name", ["org/toy/../x", "/tmp/nowhere", "./nowhere", "a/b/c", "nowhere/"])
def test_a_path_that_is_no_hub_name_is_not_sent_there(name):
    with pytest.raises(ConfigError, match="no model, file or folder"):
        resolve(name)
