"""Families as data: transforms invert, rows cover every parameter, fields go both ways."""

from __future__ import annotations

import pytest
import torch

from minift.checkpoints.families import FAMILIES, HOW, config_from_json, config_to_json, rows
from minift.model.config import ModelConfig, RopeScaling
from minift.model.transformer import Transformer

CONFIG = ModelConfig("llama", 50, 24, 2, 4, 2, 6, 20, 64)


@pytest.mark.parametrize("how", sorted(HOW))
def test_every_transform_has_its_inverse(how):
    load, save = HOW[how]
    x = torch.arange(24 * 5).view(24, 5)
    assert torch.equal(save(CONFIG, load(CONFIG, x)), x)


def test_pairs_by_hand():
    # One head of four channels: GGUF keeps pairs (0, 2) and (1, 3) side by side.
    config = ModelConfig("llama", 8, 4, 1, 1, 1, 4, 4, 8)
    stored = torch.tensor([[0], [2], [1], [3]])
    assert HOW["q pairs"][0](config, stored).flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", sorted(FAMILIES))
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_cover_every_parameter_once(name, tied, bias):
    config = ModelConfig("llama", 50, 24, 2, 4, 2, 6, 20, 64, tied=tied, qkv_bias=bias,
                         out_bias=bias, mlp_bias=bias)  # fmt: skip
    with torch.device("meta"):
        wanted = {key for key, _ in Transformer(config).named_parameters()}
    found = [row.ours for row in rows(FAMILIES[name].weights, config)]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize("scaling", [None, RopeScaling(8.0, 1.0, 4.0, 32)])
def test_a_config_comes_back(scaling):
    config = ModelConfig("llama", 50, 24, 2, 4, 2, 8, 20, 64, 1e-6, 5e5, scaling, True, True, True)
    assert config_from_json(config_to_json(config, "float32"), "config.json") == config
