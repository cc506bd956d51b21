"""Rotary positions by hand and by property; the goldens of test_transformer.py hold them too."""

from __future__ import annotations

import math

import pytest
import torch

from minift.model.config import ModelConfig, RopeScaling
from minift.model.rope import frequencies, rotary_table, rotate, stretch

CONFIG = ModelConfig("llama", 8, 8, 1, 2, 2, 4, 8, 16, rope_base=100.0)


def test_frequencies_by_hand():
    assert frequencies(CONFIG).tolist() == pytest.approx([1.0, 0.1], abs=1e-15)


def test_a_quarter_turn_by_hand():
    table = rotary_table(torch.tensor([math.pi / 2]), torch.tensor([[1]]), torch.float64)
    x = torch.tensor([3.0, 5.0], dtype=torch.float64).view(1, 1, 1, 2)
    assert rotate(x, table).flatten().tolist() == pytest.approx([-5.0, 3.0])


def test_products_depend_on_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 4, dtype=torch.float64)

    def product(at_q, at_k):
        turned = [
            rotate(x, rotary_table(frequencies(CONFIG), torch.tensor([[at]]), torch.float64))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(100_004, 100_000), abs=1e-10)
    assert product(7, 3) != pytest.approx(product(8, 3), abs=1e-3)


def test_llama3_keeps_short_waves_and_slows_long_ones():
    scaling = RopeScaling(8.0, 1.0, 4.0, 8192)
    short, long = 2 * math.pi / 100, 2 * math.pi / 100_000  # wavelengths 100 and 100,000
    middle = 2 * math.pi * 2.5 / 8192  # 2.5 turns: half way between 1 and 4
    got = stretch(torch.tensor([short, long, middle], dtype=torch.float64), scaling)
    assert got.tolist() == pytest.approx([short, long / 8, middle * (0.5 + 0.5 / 8)], rel=1e-12)
