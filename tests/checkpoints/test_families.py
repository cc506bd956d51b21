"""Families as data: every one against transformers' numbers, and its rows in both directions."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from minift.checkpoints.config_json import config_from_json, config_to_json
from minift.checkpoints.families import FAMILIES, GGUF_FAMILIES, config_from_gguf, family_of
from minift.checkpoints.mapping import TRANSFORMS, pairs
from minift.checkpoints.open import load_model
from minift.checkpoints.save import folder_files
from minift.errors import FormatError
from minift.formats import safetensors
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
        mine = TRANSFORMS[pair.transform].save(
            model.config, [parameters[ours].grad for ours in pair.ours]
        )
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


def test_an_unknown_family_is_told_the_known_ones():
    with pytest.raises(FormatError, match=r"mamba.*llama, mistral, qwen2"):
        family_of("mamba", FAMILIES, "config.json", "model_type")


BAD_CONFIGS = [
    ({"architectures": ["LlamaForRewardModel"]}, "architectures", "out-of-range"),
    ({"rope_parameters": {"rope_type": "magic"}}, "rope_type", "out-of-range"),
    ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing", "bad-type"),
    ({"rope_parameters": [1]}, "an object", "bad-type"),
    ({"rope_parameters": {"rope_type": "linear", "factor": 0.5}}, "factor 0.5", "out-of-range"),
    ({"num_attention_heads": 3}, "no multiple", "out-of-range"),
    ({"hidden_size": "24"}, "hidden_size is 24, not a whole number", "bad-type"),
    ({"hidden_size": True}, "not a whole number", "bad-type"),
    ({"hidden_act": "step"}, "not one of", "bad-type"),
    ({"quantization_config": {}}, "quantization_config", "out-of-range"),
    ({"hidden_size": None, "vocab_size": None}, "2 that do not fit", "bad-type"),
    ({"rms_norm_eps": float("nan")}, "norm_eps", "out-of-range"),
    ({"num_hidden_layers": 10**12}, "layers", "out-of-range"),
    ({"head_dim": 5}, "even number", "out-of-range"),
    (
        {"hidden_size": 2**31, "vocab_size": 2**31, "head_dim": 6},
        "below 2.60 numbers",
        "out-of-range",
    ),
    (
        {"intermediate_size": 2**31, "hidden_size": 2**30, "head_dim": 6},
        "below 2.60 numbers",
        "out-of-range",
    ),
]


@pytest.mark.parametrize(("change", "match", "code"), BAD_CONFIGS)
def test_configs_that_cannot_be_are_refused(change, match, code):
    data = json.loads((GOLDEN / "llama_gqa" / "config.json").read_text()) | change
    with pytest.raises(FormatError, match=match) as caught:
        config_from_json(data, "config.json")
    assert caught.value.code == code


@pytest.mark.parametrize("name", sorted(GGUF_FAMILIES))
def test_a_gguf_file_of_every_family_names_what_it_lacks(name):
    with pytest.raises(FormatError, match="do not fit"):
        config_from_gguf({"general.architecture": name}, {}, "x.gguf")


SIZES = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings"),
)
NO_SIZES = {
    0: "out-of-range",
    -1: "out-of-range",
    2**31 + 1: "out-of-range",
    10**19: "out-of-range",
}
NO_SIZES |= {1.5: "bad-type", True: "bad-type", "4": "bad-type", (): "bad-type"}
LIES = {  # the golden folder, the fields that are changed, the code
    "llama_gqa": [
        ({"model_type": None}, "out-of-range"), ({"model_type": ["llama"]}, "out-of-range"),
        ({"model_type": "LLAMA"}, "out-of-range"), ({"model_type": "../llama"}, "out-of-range"),
        ({"model_type": "mamba", "auto_map": {"AutoModel": "x.py"}}, "out-of-range"),
        ({"architectures": "LlamaForCausalLM"}, "bad-type"), ({"architectures": [3]}, "bad-type"),
        ({"architectures": {}}, "bad-type"),
        ({"architectures": ["GPT2LMHeadModel"]}, "out-of-range"),
        ({"rms_norm_eps": 0.0}, "out-of-range"), ({"rms_norm_eps": -1e-6}, "out-of-range"),
        ({"rms_norm_eps": 1.0}, "out-of-range"), ({"rms_norm_eps": "1e-6"}, "bad-type"),
        ({"rms_norm_eps": 1e308}, "out-of-range"), ({"hidden_act": 3}, "bad-type"),
        ({"hidden_act": ["silu"]}, "bad-type"), ({"tie_word_embeddings": 1}, "bad-type"),
        ({"attention_bias": "yes"}, "bad-type"), ({"mlp_bias": 0}, "bad-type"),
        ({"quantization_config": []}, "out-of-range"),
        ({"rope_parameters": None, "rope_theta": 0}, "out-of-range"),
        ({"rope_parameters": None, "rope_theta": -1e4}, "out-of-range"),
        ({"rope_parameters": None, "rope_theta": "1e4"}, "bad-type"),
        ({"rope_parameters": None, "rope_theta": True}, "bad-type"),
        ({"rope_parameters": "linear"}, "bad-type"), ({"rope_scaling": 2.0}, "bad-type"),
        ({"rope_parameters": {"rope_type": None}}, "out-of-range"),
        ({"rope_parameters": {"rope_type": ["linear"]}}, "out-of-range"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "out-of-range"),
        ({"rope_parameters": {"rope_type": "linear", "factor": True}}, "bad-type"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": -2.0}}, "out-of-range"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": "x"}}, "bad-type"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0, 2.0],
                              "long_factor": [1.0, 2.0]}}, "out-of-range"),
        ({"num_attention_heads": 10**9, "num_key_value_heads": 7}, "out-of-range"),
    ],
    "families/mistral": [
        ({"sliding_window": 0}, "bad-type"), ({"sliding_window": "4"}, "bad-type"),
        ({"sliding_window": 2**40}, "bad-type"), ({"sliding_window": True}, "bad-type"),
        ({"sliding_window": 4, "num_hidden_layers": 10**9}, "out-of-range"),
    ],
    "families/gemma2": [
        ({"query_pre_attn_scalar": 0}, "out-of-range"),
        ({"query_pre_attn_scalar": "8"}, "bad-type"),
        ({"query_pre_attn_scalar": -4}, "out-of-range"), ({"hidden_size": 10**12}, "out-of-range"),
        ({"attn_logit_softcapping": 0.0}, "out-of-range"),
        ({"final_logit_softcapping": "30"}, "bad-type"),
        ({"use_bidirectional_attention": True}, "out-of-range"),
        ({"layer_types": ["full_attention"] * 10**4}, "bad-type"),
        ({"layer_types": [None]}, "bad-type"), ({"layer_types": {}}, "bad-type"),
    ],
    "families/gemma3": [
        ({"rope_parameters": {"full_attention": 3}}, "bad-type"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "out-of-range"),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": "1e4"}}}, "bad-type"),
        ({"rope_parameters": None, "rope_local_base_freq": 0}, "out-of-range"),
    ],
    "families/gpt2": [
        ({"n_embd": 0}, "out-of-range"), ({"n_head": 0}, "out-of-range"),
        ({"n_positions": -1}, "out-of-range"), ({"n_inner": "x"}, "bad-type"),
        ({"activation_function": "exec"}, "bad-type"),
        ({"scale_attn_weights": False}, "out-of-range"),
        ({"scale_attn_by_inverse_layer_idx": True}, "out-of-range"),
        ({"add_cross_attention": True}, "out-of-range"),
        ({"n_positions": 2**31, "n_embd": 2**30}, "out-of-range"),
    ],
    "families/gpt_neox": [
        ({"rotary_pct": 1e308, "rope_parameters": None}, "out-of-range"),
        ({"rotary_pct": 0.0, "rope_parameters": None}, "out-of-range"),
        ({"rotary_pct": "x", "rope_parameters": None}, "bad-type"),
        ({"rope_parameters": {"partial_rotary_factor": -1.0}}, "out-of-range"),
        ({"use_parallel_residual": 1}, "bad-type"), ({"use_parallel_residual": None}, "bad-type"),
    ],
    "families/roberta": [
        ({"pad_token_id": -1}, "out-of-range"), ({"pad_token_id": 10**6}, "out-of-range"),
        ({"pad_token_id": "1"}, "out-of-range"), ({"max_position_embeddings": 2}, "out-of-range"),
        ({"type_vocab_size": -1}, "out-of-range"), ({"type_vocab_size": 10**6}, "out-of-range"),
        ({"is_decoder": True}, "out-of-range"),
        ({"position_embedding_type": "relative_key"}, "out-of-range"),
    ],
    "families/bert_labels": [
        ({"id2label": {}}, "bad-type"), ({"id2label": ["a"]}, "bad-type"),
        ({"id2label": {"0": "a", "2": "b"}}, "bad-type"), ({"id2label": {"0": [3]}}, "bad-type"),
        ({"id2label": {"00": "a"}}, "bad-type"),
        ({"id2label": None, "num_labels": 0}, "out-of-range"),
        ({"id2label": None, "num_labels": 10**9}, "out-of-range"),
        ({"id2label": None, "num_labels": True}, "out-of-range"),
        ({"id2label": {str(i): "x" for i in range(1, 50_000)}}, "bad-type"),
    ],
}  # fmt: skip
GGUF_LIES = [  # the architecture, what its metadata says, the code
    ("gemma2", {"attention.sliding_window": "16"}, "bad-type"),
    ("gemma2", {"attention.sliding_window": True}, "bad-type"),
    ("gemma2", {"attention.sliding_window": 4.5}, "bad-type"),
    ("gemma2", {"attention.sliding_window": [4]}, "bad-type"),
    ("gemma2", {"attention.sliding_window_pattern": -1}, "out-of-range"),
    ("gemma2", {"attention.sliding_window": -1}, "out-of-range"),
    ("gemma2", {"attention.sliding_window": 8, "block_count": 10**9}, "out-of-range"),
    ("gemma2", {"attn_logit_softcapping": "50"}, "bad-type"),
    ("gemma2", {"attn_logit_softcapping": -1.0}, "out-of-range"),
    ("gptneox", {"rope.dimension_count": 3}, "out-of-range"),
    ("gptneox", {"rope.dimension_count": "4"}, "bad-type"),
    ("gptneox", {"rope.dimension_count": 2**31}, "out-of-range"),
    ("gptneox", {"use_parallel_residual": 1}, "bad-type"),
    ("gptneox", {"rope.scaling.type": "magic"}, "out-of-range"),
    ("gpt2", {"attention.layer_norm_epsilon": True}, "bad-type"),
]  # fmt: skip


def hostile():
    """For tests/hostile.py: config.json, each changed in a field or two, and GGUF's like it."""

    def attempt(folder, base, change):
        data = json.loads((GOLDEN / base / "config.json").read_text()) | change
        config_from_json(data, "config.json")

    def said(folder, family, change):
        facts = {"vocab_size": 50, "embedding_length": 8, "block_count": 2, "context_length": 16}
        facts |= {"attention.head_count": 2, "feed_forward_length": 16}
        facts |= {"attention.layer_norm_rms_epsilon": 1e-5, "attention.layer_norm_epsilon": 1e-5}
        found = {f"{family}.{key}": value for key, value in (facts | change).items()}
        config_from_gguf({"general.architecture": family} | found, {}, "x.gguf")

    cases = {
        f"{field} {value!r}": (partial(attempt, base="llama_gqa", change={field: value}), code)
        for field in SIZES
        for value, code in NO_SIZES.items()
    }
    for base, lies in LIES.items():
        for change, code in lies:
            name = f"{base} {change!r:.60} {len(cases)}"
            cases[name] = partial(attempt, base=base, change=change), code
    for family, change, code in GGUF_LIES:
        cases[f"{family} {change!r}"] = partial(said, family=family, change=change), code
    for number, (change, _, code) in enumerate(BAD_CONFIGS):
        cases[f"said {number}"] = partial(attempt, base="llama_gqa", change=change), code
    return cases
