"""Rotary positions of configurations by hand; both directions are held by test_families.py."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from minift.checkpoints.rope_parts import GGUF_ROPE, rope, scaling
from minift.errors import FormatError
from minift.model.config import ModelConfig, RopeScaling

CONFIG = ModelConfig("llama", 50, 24, 6, 4, 4, 6, 20, 64)


def test_the_base_stands_in_either_place():
    read = rope(10_000.0).read
    assert read({"rope_theta": 5}, {"context": 8}, "f")["rope_base"] == 5.0
    assert read({"rope_parameters": {"rope_theta": 7}}, {"context": 8}, "f")["rope_base"] == 7.0
    nothing = {"rope_base": 10_000.0, "rope_scaling": None, "context": 8}
    assert read({}, {"context": 8}, "f") == nothing


def test_yarn_by_hand():
    found = scaling({"type": "yarn", "factor": 4.0}, 64, "f")
    assert found == RopeScaling("yarn", 4.0, 1.0, 32.0, 64, 0.1 * math.log(4) + 1)
    both = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    assert scaling(both, 64, "f").attention_factor == 1.0
    ratio = {"rope_type": "yarn", "original_max_position_embeddings": 16}
    assert scaling(ratio, 64, "f").factor == 4.0


def test_longrope_by_hand():
    factors = {"short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0], "rope_type": "longrope"}
    eighth = {"original_max_position_embeddings": 8}  # of 64: the square root of 1 + ln 8 / ln 8
    assert scaling(factors | eighth, 64, "f").attention_factor == pytest.approx(2**0.5)
    assert scaling(factors | eighth | {"attention_factor": 1.5}, 64, "f").attention_factor == 1.5
    assert scaling(factors | {"factor": 64.0}, 64, "f").attention_factor == pytest.approx(2**0.5)
    assert scaling(factors, 64, "f").attention_factor == 1.0


def test_scaling_enlarges_the_context_where_the_original_is_known():
    def context(**words):
        data = {"rope_scaling": {"factor": 4.0, **words}}
        return rope(1e4).read(data, {"context": 64}, "f")["context"]

    assert context(type="yarn", original_max_position_embeddings=32) == 128
    assert context(type="yarn", original_max_position_embeddings=8) == 64  # counted already
    assert context(type="yarn") == 64
    assert context(type="linear") == 64  # counted in some files, in others not
    assert context(type="linear", original_max_position_embeddings=64) == 256
    assert context(type="dynamic") == 256
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert context(type="llama3", original_max_position_embeddings=32, **llama3) == 64


def test_a_dynamic_base_grows_from_what_is_written():
    part = rope(1e4)
    found = part.read({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, {"context": 16}, "f")
    written = part.write(replace(CONFIG, **found))
    assert written["max_position_embeddings"] == 16
    assert part.read(written, {"context": 16}, "f") == found


BAD_SCALINGS = [
    ({"rope_type": "yarn", "factor": 4.0, "truncate": False}, "out-of-range"),
    ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}, "out-of-range"),
    ({"rope_type": "longrope", "short_factor": "x", "long_factor": "x"}, "bad-type"),
    ({"rope_type": "longrope", "short_factor": [0.0], "long_factor": [0.0]}, "out-of-range"),
    ({"rope_type": "llama3", "factor": 8.0}, "bad-type"),
    ({"rope_type": "dynamic", "factor": float("inf")}, "out-of-range"),
    ({"rope_type": "linear", "factor": "2"}, "bad-type"),
    ({"rope_type": 3}, "out-of-range"),
    ({"rope_type": "yarn", "factor": 4.0, "attention_factor": "x"}, "bad-type"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
     "original_max_position_embeddings": 8}, "out-of-range"),
    # The second mscale makes the divisor zero: 0.1 * w * ln(2) + 1.
    ({"rope_type": "yarn", "factor": 2.0, "mscale": 1.0,
     "mscale_all_dim": -10 / math.log(2.0)}, "overflow"),
    ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0],
     "original_max_position_embeddings": True}, "bad-type"),
    ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0],
     "original_max_position_embeddings": 8.5}, "bad-type"),
    ({"rope_type": "longrope", "short_factor": [], "long_factor": []}, "bad-type"),
    ({"rope_type": "longrope", "short_factor": ["1"], "long_factor": ["1"]}, "bad-type"),
    ({"rope_type": "longrope", "short_factor": [True], "long_factor": [True]}, "bad-type"),
    ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0],
     "attention_factor": 0.0}, "out-of-range"),
    ({"rope_type": "yarn", "factor": 2.0, "beta_fast": 1.0, "beta_slow": 32.0}, "out-of-range"),
    ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": -8}, "out-of-range"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 8}, "out-of-range"),
    ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": "8"}, "bad-type"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "code"), BAD_SCALINGS, ids=range(len(BAD_SCALINGS)))
def test_scalings_that_cannot_be_are_refused(found, code):
    with pytest.raises(FormatError) as caught:
        scaling(found, 64, "f")
    assert caught.value.code == code


def test_a_scaling_to_no_end_has_no_context():
    scaled = {"rope_scaling": {"type": "yarn", "factor": 1e308, "attention_factor": 1.0,
                               "original_max_position_embeddings": 100}}  # fmt: skip
    assert rope(1e4).read(scaled, {"context": 100}, "f")["context"] > 2**31  # ModelConfig's most


def test_gguf_says_scaling_in_its_own_words():
    words = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0}
    assert GGUF_ROPE.read(words, {"context": 8}, "f")["rope_scaling"] == RopeScaling("linear", 2.0)
    factors = GGUF_ROPE.read({"rope_freqs.weight": (1.0, 2.0)}, {"context": 8}, "f")
    assert factors["rope_scaling"].factors == (1.0, 2.0)
    with pytest.raises(FormatError, match=r"rope\.scaling\.type"):
        GGUF_ROPE.read({"rope.scaling.type": "magic"}, {"context": 8}, "f")


GGUF_SCALES = [  # metadata, kind and factor: the defaults of llama.cpp
    ({}, None, None),
    ({"rope.scaling.factor": 4.0}, "linear", 4.0),
    ({"rope.scale_linear": 2.0}, "linear", 2.0),
    ({"rope.scale_linear": 2.0, "rope.scaling.factor": 8.0}, "linear", 8.0),
    ({"rope.scaling.factor": 0.0}, None, None),
    ({"rope.scaling.factor": 1.0, "rope.scaling.type": "linear"}, None, None),
    ({"rope.scaling.factor": 4.0, "rope.scaling.type": "none"}, None, None),
    ({"rope.scaling.factor": 4.0, "rope.scaling.type": "yarn"}, "yarn", 4.0),
    ({"rope_freqs.weight": (1.0, 2.0)}, "factors", None),
]


@pytest.mark.parametrize(("data", "kind", "factor"), GGUF_SCALES)
def test_gguf_scales_as_llama_cpp_does_where_a_key_is_left_out(data, kind, factor):
    found = GGUF_ROPE.read(data, {"context": 64}, "f")["rope_scaling"]
    assert (found and found.kind) == kind
    assert factor is None or found.factor == factor


def test_gguf_yarn_has_a_factor_on_its_own_factor():
    data = {"rope.scaling.factor": 4.0, "rope.scaling.type": "yarn"}
    more = {"rope.scaling.attn_factor": 0.5, "rope.scaling.yarn_beta_fast": 16.0}
    found = GGUF_ROPE.read(data | more, {"context": 64}, "f")["rope_scaling"]
    assert found.attention_factor == pytest.approx(0.5 * 1.1386294361)  # 0.1 ln 4 + 1
    assert (found.high, found.low) == (16.0, 1.0)


BAD_GGUF_SCALINGS = [
    ({"rope.scaling.factor": "4"}, "bad-type"),
    ({"rope.scaling.factor": float("nan")}, "bad-type"),
    ({"rope.scaling.factor": -4.0}, "out-of-range"),
    ({"rope.scale_linear": [2.0]}, "bad-type"),
    ({"rope.scaling.type": "longrope"}, "out-of-range"),
    ({"rope.scaling.type": ["linear"]}, "out-of-range"),
    ({"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
      "rope.scaling.attn_factor": float("inf")}, "bad-type"),
    ({"rope.scaling.factor": 4.0, "rope_freqs.weight": (1.0,)}, "out-of-range"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "code"), BAD_GGUF_SCALINGS)
def test_gguf_refuses_a_scaling_that_is_none(data, code):
    with pytest.raises(FormatError) as caught:
        GGUF_ROPE.read(data, {"context": 64}, "f")
    assert caught.value.code == code


def test_factors_of_nothing_are_refused():
    with pytest.raises(FormatError):
        GGUF_ROPE.read({"rope_freqs.weight": ()}, {"context": 8}, "f")


def hostile():
    """For tests/hostile.py."""
    cases = {
        f"scaling {number}": (lambda folder, found=found: scaling(found, 64, "f"), code)
        for number, (found, code) in enumerate(BAD_SCALINGS)
    }
    for number, (data, code) in enumerate(BAD_GGUF_SCALINGS):
        cases[f"gguf scaling {number}"] = (
            lambda folder, data=data: GGUF_ROPE.read(data, {"context": 64}, "f"),
            code,
        )
    return cases
