"""Rotary positions by hand and by property; the goldens of test_transformer.py hold them too."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from minift.kernels.rope.reference import rotate
from minift.model.config import ModelConfig, RopeScaling
from minift.model.rope import frequencies, frequencies_on, rotary_table, stretch

CONFIG = ModelConfig("llama", 8, 8, 1, 2, 2, 4, 8, 16, rope_base=100.0)


def test_frequencies_by_hand():
    assert frequencies(CONFIG).tolist() == pytest.approx([1.0, 0.1], abs=1e-15)


def test_a_quarter_turn_by_hand():
    table = rotary_table(torch.tensor([math.pi / 2]), torch.tensor([[1]]), torch.float64)
    x = torch.tensor([3.0, 5.0], dtype=torch.float64).view(1, 1, 1, 2)
    assert rotate(x, *table).flatten().tolist() == pytest.approx([-5.0, 3.0])


def test_products_depend_on_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 4, dtype=torch.float64)

    def product(at_q, at_k):
        turned = [
            rotate(x, *rotary_table(frequencies(CONFIG), torch.tensor([[at]]), torch.float64))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(100_004, 100_000), abs=1e-10)
    assert product(7, 3) != pytest.approx(product(8, 3), abs=1e-3)


def test_llama3_keeps_short_waves_and_slows_long_ones():
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    short, long = 2 * math.pi / 100, 2 * math.pi / 100_000  # wavelengths 100 and 100,000
    middle = 2 * math.pi * 2.5 / 8192  # 2.5 turns: half way between 1 and 4
    got = stretch(torch.tensor([short, long, middle], dtype=torch.float64), scaling, 1e4)
    assert got.tolist() == pytest.approx([short, long / 8, middle * (0.5 + 0.5 / 8)], rel=1e-12)


def test_linear_and_listed_scaling_by_hand():
    freq = torch.tensor([1.0, 0.1], dtype=torch.float64)
    assert stretch(freq, RopeScaling("linear", 4.0), 100.0).tolist() == pytest.approx([0.25, 0.025])
    listed = stretch(freq, RopeScaling("factors", factors=(2.0, 5.0)), 100.0)
    assert listed.tolist() == pytest.approx([0.5, 0.02])


def test_a_dynamic_base_grows_with_the_row_only():
    config = replace(CONFIG, rope_scaling=RopeScaling("dynamic", 2.0, original_context=16))
    assert frequencies(config, length=16).tolist() == pytest.approx([1.0, 0.1])
    # Twice the context: the base becomes 100 * (2 * 2 - 1) ^ (4 / 2) = 900.
    assert frequencies(config, length=32).tolist() == pytest.approx([1.0, 1 / 30])


def test_yarn_keeps_waves_that_turn_often_and_slows_those_that_do_not():
    scaling = RopeScaling("yarn", 8.0, low=1.0, high=32.0, original_context=4096)
    freq = torch.tensor(10_000.0).double() ** -(torch.arange(0, 128, 2).double() / 128)
    slowed = stretch(freq, scaling, 10_000.0) / freq
    turns = 4096 * freq / (2 * math.pi)
    assert slowed[turns > 36].tolist() == pytest.approx([1.0] * int((turns > 36).sum()))
    assert slowed[turns < 0.8].tolist() == pytest.approx([1 / 8] * int((turns < 0.8).sum()))
    assert bool((slowed.diff() <= 1e-15).all())


def test_only_the_first_channels_turn():
    table = rotary_table(torch.tensor([math.pi / 2]), torch.tensor([[1]]), torch.float64)
    x = torch.tensor([3.0, 5.0, 7.0, 9.0], dtype=torch.float64).view(1, 1, 1, 4)
    assert rotate(x, *table).flatten().tolist() == pytest.approx([-5.0, 3.0, 7.0, 9.0])


def test_local_layers_have_a_base_of_their_own():
    config = replace(CONFIG, local_rope_base=4.0, rope_scaling=RopeScaling("linear", 2.0))
    assert frequencies(config, local=True).tolist() == pytest.approx([1.0, 0.5])
    assert frequencies(config).tolist() == pytest.approx([0.5, 0.05])


def test_a_gain_multiplies_both():
    cos, sin = rotary_table(torch.tensor([0.0]), torch.tensor([[3]]), torch.float64, 1.5)
    assert (float(cos.flatten()), float(sin.flatten())) == (1.5, 0.0)


def test_frequencies_are_kept_on_their_device():
    scaled = replace(CONFIG, rope_scaling=RopeScaling("linear", 2.0))
    one = frequencies_on(torch.device("cpu"), scaled, False)
    assert torch.equal(one, frequencies(scaled))
    assert frequencies_on(torch.device("cpu"), scaled, False) is one
    other = frequencies_on(torch.device("meta"), scaled, False)
    assert other.device.type == "meta"
    assert frequencies_on(torch.device("meta"), scaled, False) is other
