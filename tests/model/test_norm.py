"""The norms by hand, and against torch's."""

from __future__ import annotations

import pytest
import torch

from minift.model.config import ModelConfig
from minift.model.norm import LayerNorm, RMSNorm, make_norm

CONFIG = ModelConfig("llama", 8, 4, 1, 2, 2, 2, 8, 16)


def test_rms_by_hand():
    norm = RMSNorm(2, 0.0).double()
    x = torch.tensor([3.0, 4.0], dtype=torch.float64)  # mean square 12.5
    expected = [3 / 12.5**0.5, 4 / 12.5**0.5]
    assert norm(x).tolist() == pytest.approx(expected, rel=1e-15)


def test_an_offset_is_added_to_the_weight():
    norm = RMSNorm(2, 0.0, offset=1.0).double()
    assert norm.weight.tolist() == [0.0, 0.0]  # so a new norm multiplies by one
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -1.0]))
    x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert norm(x).tolist() == pytest.approx([6 / 12.5**0.5, 0.0], rel=1e-15)


def test_an_offset_keeps_the_last_bits_of_a_small_weight():
    norm = RMSNorm(2, 1e-6, offset=1.0).bfloat16()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.001, -0.001]))  # 1.001 is 1 in bf16
    x = torch.tensor([1.0, 1.0]).bfloat16().float()
    wide = RMSNorm(2, 1e-6, offset=1.0)
    with torch.no_grad():
        wide.weight.copy_(norm.weight.float())
    assert torch.equal(norm(x.bfloat16()), wide(x).bfloat16())


def test_the_kind_and_the_width_are_the_models():
    assert make_norm(CONFIG).weight.shape == (4,)
    assert make_norm(CONFIG, 2).weight.shape == (2,)
    layer = make_norm(ModelConfig("gpt2", 8, 4, 1, 2, 2, 2, 8, 16, norm="layer"))
    assert isinstance(layer, LayerNorm)
    x = torch.tensor([[1.0, 2.0, 3.0, 6.0]])  # mean 3, variance 3.5
    expected = [(v - 3) / (3.5 + 1e-5) ** 0.5 for v in (1, 2, 3, 6)]
    assert layer(x)[0].tolist() == pytest.approx(expected, rel=1e-6)
