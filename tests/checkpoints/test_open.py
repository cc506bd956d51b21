"""Loading: what fits is loaded bit for bit, what does not is refused with the whole list."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from minift.checkpoints.hub.assets import ASSETS
from minift.checkpoints.open import headers, load, load_model, resolve, survey
from minift.errors import ConfigError, FormatError, Notice
from minift.formats import safetensors

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


BAD_FIELDS = [
    ("model_type", "mamba", "a family that minift knows: llama", "out-of-range"),
    ("model_type", None, "a family that minift knows", "out-of-range"),
    ("hidden_size", "24", "hidden_size is 24, not a whole number", "bad-type"),
    ("hidden_size", 24.0, "not a whole number", "bad-type"),
    ("hidden_size", True, "not a whole number", "bad-type"),
    ("hidden_size", None, "hidden_size is null", "bad-type"),
    ("num_key_value_heads", 3, "no multiple", "out-of-range"),
    ("num_hidden_layers", 10**9, "layers that the file holds", "shape-mismatch"),
    ("num_hidden_layers", -1, "allowed", "out-of-range"),
    ("hidden_act", "step", "hidden_act is step, not one of silu", "bad-type"),
    ("quantization_config", {"bits": 4}, "quantization_config", "out-of-range"),
    ("rope_parameters", {"rope_type": "ntk", "rope_theta": 1e4}, "default, linear", "out-of-range"),
    ("rope_parameters", {"rope_type": "llama3"}, "factor is missing", "bad-type"),
    ("tie_word_embeddings", "yes", "not true or false", "bad-type"),
    ("vocab_size", 10**12, "allowed a whole number", "out-of-range"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "text", "code"), BAD_FIELDS)
def test_a_config_that_does_not_fit_is_refused(tmp_path, key, value, text, code):
    def edit(config):
        config[key] = value

    with pytest.raises(FormatError) as caught:
        load_model(folder(tmp_path, config=edit))
    assert text in str(caught.value)
    assert caught.value.code == code
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
    assert survey(place).ignored == ["pytorch_model.bin", "extra.gguf"]
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


def test_all_disagreements_of_a_config_with_its_tensors_at_once(tmp_path):
    def edit(config):
        config |= {"hidden_size": 32, "vocab_size": 60, "num_hidden_layers": 4}

    place = folder(tmp_path, config=edit)
    for look in (load_model, survey):  # without loading a weight, too
        with pytest.raises(FormatError) as caught:
            look(place)
        text = str(caught.value)
        assert "missing model.layers.3.mlp.up_proj.weight" in text
        assert "model.embed_tokens.weight is (61, 24), not (60, 32)" in text
        assert "model.layers.0.input_layernorm.weight is (24,), not (32,)" in text


def test_a_tied_copy_that_is_none_is_a_head_of_its_own(tmp_path):
    def tie(config):
        config["tie_word_embeddings"] = True

    def same(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    assert load_model(folder(tmp_path / "a", tie, same)).config.tied
    with pytest.warns(Notice, match=r"lm_head\.weight differs from model\.embed.*loaded untied"):
        assert not load_model(folder(tmp_path / "b", tie)).config.tied


def test_a_tokenizer_larger_than_the_embedding(tmp_path, tiny_tokenizer):
    place = folder(tmp_path)
    for name, raw in tiny_tokenizer.files().items():
        (place / name).write_bytes(raw)
    for look in (load, survey):
        with pytest.raises(
            FormatError, match="found 700 tokens, allowed at most the embedding's 61"
        ):
            look(place)


@pytest.mark.parametrize("name", ["x" * 300, "x" * 5000, "a/" * 3000, "x" * 300 + "/config.json"])
def test_a_name_that_no_disk_has(name):
    with pytest.raises(ConfigError, match="too long") as caught:
        resolve(name)
    assert "\n" not in str(caught.value)


def hostile():
    """For tests/hostile.py: folders that other programs wrote, something in them changed."""

    def attempt(tmp_path, config=lambda c: None, tensors=lambda t: None, after=lambda p: None):
        place = folder(tmp_path, config, tensors)
        after(place)
        load_model(place)

    def config(**changes):
        return {"config": lambda data: data.update(changes)}

    def tensors(edit):
        return {"tensors": edit}

    def instead(name, content):
        def make(place):
            (place / name).unlink()
            if callable(content):
                content(place / name)
            else:
                (place / name).write_bytes(content)

        return {"after": make}

    raw = (GOLDEN / "llama_gqa" / "config.json").read_bytes()
    cases = {
        f"{key} {value!r}": (config(**{key: value}), code) for key, value, _, code in BAD_FIELDS
    }
    cases |= {
        "a layer more": (config(num_hidden_layers=4), "shape-mismatch"),
        "a layer less": (config(num_hidden_layers=2), "shape-mismatch"),
        "100,000 layers": (config(num_hidden_layers=100_000), "shape-mismatch"),
        "a billion layers": (config(num_hidden_layers=10**9), "shape-mismatch"),
        "a wider model": (config(hidden_size=32), "shape-mismatch"),
        "a larger vocabulary": (config(vocab_size=62), "shape-mismatch"),
        "2^31 words": (config(vocab_size=2**31), "shape-mismatch"),
        "2^31 words of 2^31 numbers": (
            config(vocab_size=2**31, hidden_size=2**31, head_dim=6), "out-of-range",
        ),
        "heads of 2^31": (config(head_dim=2**31), "shape-mismatch"),
        "2^31 heads": (
            config(num_attention_heads=2**31, num_key_value_heads=2**31), "shape-mismatch",
        ),
        "labels": (config(architectures=["LlamaForSequenceClassification"]), "shape-mismatch"),
        "another family": (config(model_type="gpt2"), "out-of-range"),
        "a family like it": (
            config(model_type="qwen2", architectures=["Qwen2ForCausalLM"]), "shape-mismatch",
        ),
        "biases that are not there": (config(attention_bias=True), "shape-mismatch"),
        "no tensors": (tensors(lambda t: t.clear()), "shape-mismatch"),
        "a tensor less": (tensors(lambda t: t.pop("model.norm.weight")), "shape-mismatch"),
        "a tensor more": (
            tensors(lambda t: t.update(spare=torch.zeros(1))), "shape-mismatch",
        ),
        "5,000 tensors more": (
            tensors(lambda t: t.update({f"s.{i}": torch.zeros(0) for i in range(5_000)})),
            "shape-mismatch",
        ),
        "5,000 tensors and as many layers": (
            config(num_hidden_layers=5_000)
            | tensors(lambda t: t.update({f"s.{i}": torch.zeros(0) for i in range(5_000)})),
            "shape-mismatch",
        ),
        "a tensor turned": (
            tensors(lambda t: t.update({"lm_head.weight": t["lm_head.weight"].T.contiguous()})),
            "shape-mismatch",
        ),
        "no weights": ({"after": lambda p: (p / "model.safetensors").unlink()}, "missing-field"),
        "weights of nothing": (instead("model.safetensors", b""), "truncated"),
        "weights that are a pipe": (instead("model.safetensors", os.mkfifo), "bad-path"),
        "weights that are a folder": (
            instead("model.safetensors", lambda p: p.mkdir()), "bad-path",
        ),
        "no config": ({"after": lambda p: (p / "config.json").unlink()}, "bad-path"),
        "a config of nothing": (instead("config.json", b""), "bad-json"),
        "a config that is a list": (instead("config.json", b"[]"), "bad-type"),
        "half a config": (instead("config.json", raw[: len(raw) // 2]), "bad-json"),
        "a config in UTF-16": (
            instead("config.json", raw.decode().encode("utf-16")), "bad-utf8",
        ),
        "a config with a mark": (instead("config.json", b"\xef\xbb\xbf" + raw), "bad-json"),
        "a config with a field twice": (
            instead("config.json", raw.rstrip()[:-1] + b',"vocab_size":61}'), "dup-key",
        ),
        "a config with NaN": (
            instead("config.json", raw.rstrip()[:-1] + b',"x":NaN}'), "bad-json",
        ),
        "a config with 1e999": (
            instead("config.json", raw.rstrip()[:-1] + b',"x":1e999}'), "out-of-range",
        ),
        "a config with an endless number": (
            instead("config.json", raw.rstrip()[:-1] + b',"x":' + b"9" * 5000 + b"}"), "limit",
        ),
        "a config with a surrogate": (
            instead("config.json", raw.rstrip()[:-1] + b',"x":"\\ud800"}'), "bad-utf8",
        ),
        "a config of a megabyte and a byte": (
            instead("config.json", b" " * (1 << 20) + raw), "too-large",
        ),
        "a config of brackets": (instead("config.json", b"[" * (1 << 20)), "limit"),
        "a config that is a pipe": (instead("config.json", os.mkfifo), "bad-path"),
        "a config that is a folder": (instead("config.json", lambda p: p.mkdir()), "bad-path"),
        "a config that is a link to itself": (
            instead("config.json", lambda p: p.symlink_to(p.name)), "bad-path",
        ),
    }  # fmt: skip
    return {name: (partial(attempt, **how), code) for name, (how, code) in cases.items()}
