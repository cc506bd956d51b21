"""config.json: what is left out, who is not named, what cannot be. Both ways: test_families.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minift.checkpoints.config_json import config_from_json, config_to_json, prefix_in
from minift.checkpoints.families import FAMILIES
from minift.errors import FormatError
from minift.kernels.activations import ACTIVATIONS
from minift.model.rope import frequencies

GOLDEN = Path(__file__).parents[1] / "golden"
DEFAULTS = json.loads((GOLDEN / "config_defaults.json").read_text())


@pytest.mark.parametrize("case", DEFAULTS["cases"], ids=lambda case: json.dumps(case["config"]))
def test_keys_left_out_or_null_mean_what_transformers_takes_them_for(case):
    config, expected = config_from_json(case["config"], "config.json"), dict(case["expected"])
    points = torch.tensor(DEFAULTS["points"], dtype=torch.float64)
    act = ACTIVATIONS[config.act](points)
    torch.testing.assert_close(act, torch.tensor(expected.pop("act"), dtype=torch.float64))
    gain, scaled = expected.pop("attention_factor", 1.0), config.rope_scaling
    assert (scaled.attention_factor if scaled else 1.0) == pytest.approx(gain, rel=1e-12)
    for key, local in (("frequencies", False), ("local_frequencies", True)):
        if key in expected:
            theirs = torch.tensor(expected.pop(key), dtype=torch.float64)
            torch.testing.assert_close(frequencies(config, local=local), theirs, rtol=1e-5, atol=0)
    if expected.pop("window") is not None or config.window is not None:
        assert config.window == case["expected"]["window"]
    assert list(config.local) == expected.pop("local")
    if scaled is not None and scaled.kind in ("yarn", "dynamic"):
        factor = scaled.factor * scaled.original_context
        assert config.context == max(expected.pop("context"), factor)
    if config.head != "lm":
        assert expected.pop("tied")
    for field, value in expected.items():
        assert getattr(config, field) == (pytest.approx(value) if type(value) is float else value)


def test_a_file_saved_without_a_head_has_no_prefix():
    gpt2 = FAMILIES["gpt2"]
    assert prefix_in(gpt2, {"transformer.wte.weight": 0}) == "transformer."
    assert prefix_in(gpt2, {"wte.weight": 0}) == ""


QUANTISED = {
    "gptq, 4 bits": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq, 4 bits": {"quant_method": "awq", "bits": 4},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "an unknown method": {},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("found", QUANTISED)
def test_weights_that_another_program_quantised_are_refused_with_the_way_out(family, found):
    data = {"model_type": family, "quantization_config": QUANTISED[found]}
    with pytest.raises(FormatError) as caught:
        config_from_json(data, "config.json")
    text = str(caught.value)
    assert f"config.json: quantization_config: found {found}, allowed weights in float32" in text
    assert "--base nf4" in text
    assert "\n" not in text


@pytest.mark.parametrize("family", FAMILIES)
def test_other_keys_refuse_no_folder(family):
    other = {"auto_map": {"AutoModel": "x.Y"}, "pretraining_tp": 2, "torch_dtype": "float16"}
    other |= {"_name_or_path": "../x", "quantization_config": None, "problem_type": "regression"}
    plain = config_from_json({"model_type": family}, "config.json")
    assert config_from_json({"model_type": family} | other, "config.json") == plain


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_survive_being_written_out(family):
    plain = config_from_json({"model_type": family}, "config.json")
    assert config_from_json(config_to_json(plain, "float32"), "config.json") == plain


def test_caps_that_are_null_are_written_as_null():
    """Left out they would be those of the class."""
    off = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    data = config_to_json(config_from_json({"model_type": "gemma2"} | off, "f"), "float32")
    assert {key: data[key] for key in off} == off
