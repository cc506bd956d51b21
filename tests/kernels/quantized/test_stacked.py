"""Stacked codes: the bits of each layer's own product, whatever stands beside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.quantized import direct, stacked
from minift.kernels.quantized.linear import QuantizedLinear
from minift.kernels.quantized.stacked import Stacked

pytestmark = pytest.mark.skipif(not direct.AVAILABLE, reason="this torch has no such product")


def made(widths, inputs=64, biases=(), kind="int8", dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(sum(widths))
    layers = []
    for i, width in enumerate(widths):
        weight = torch.randn(width, inputs, generator=generator).to(dtype) * 10.0**i
        bias = torch.randn(width, generator=generator).to(dtype) if i in biases else None
        layers.append(
            QuantizedLinear.of(kind, weight, None if bias is None else nn.Parameter(bias))
        )
    return layers


@torch.no_grad()
@pytest.mark.parametrize("biases", [(), (1,), (0, 1, 2)])
@pytest.mark.parametrize("widths", [(16,), (96, 32, 32), (7, 50)])
@pytest.mark.parametrize("shape", [(1, 1), (3,), (32, 1), (33, 1), (2, 20)])
def test_every_layer_as_alone(shape, widths, biases):
    layers = made(widths, biases=biases)
    x = torch.randn(*shape, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    found = Stacked(layers)(x)
    assert len(found) == len(layers)
    for y, layer in zip(found, layers, strict=True):
        expected = layer(x)
        assert y.shape == expected.shape
        if (
            layer.bias is not None
            or x.numel() > direct.ROWS * 64
            or not any(other.bias is not None for other in layers)
        ):
            assert torch.equal(y, expected)
        else:  # a bias of zero turns -0 into 0
            assert bool((y == expected).all())


def test_one_layer_is_not_copied():
    [layer] = made([16])
    assert Stacked([layer]).codes.data_ptr() == layer.codes.data_ptr()


@pytest.mark.parametrize(("options", "told"), [
    ({}, None), ({"kind": "nf4"}, "nf4 has no product of its own"),
    ({"inputs": 48}, "rows of 48 are no multiple of 32"),
    ({"dtype": torch.float32}, "the work is in float32, which needs --dtype bf16"),
])  # fmt: skip
def test_obstacles(options, told):
    assert stacked.obstacle(made([16], **options)[0]) == told
