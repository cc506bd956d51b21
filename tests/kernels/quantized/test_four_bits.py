"""4-bit products against the decoded matrix, and which layers have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.choice import using
from minift.kernels.quantized import four_bits
from minift.kernels.quantized.four_bits import ROWS, FourBits, obstacle
from minift.kernels.quantized.linear import QuantizedLinear

pytestmark = pytest.mark.skipif(not four_bits.AVAILABLE, reason="this torch has no such product")


def made(kind, out, inputs, bias=False, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(out + inputs)
    size = torch.logspace(-2, 2, out)[:, None]
    weight = torch.randn(out, inputs, generator=generator) * size + 0.3 * size
    b = nn.Parameter(torch.randn(out, generator=generator).to(dtype)) if bias else None
    layer = QuantizedLinear.of(kind, weight, b)
    return layer.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("out", "inputs"), [(16, 32), (48, 96), (192, 576)])
@pytest.mark.parametrize("shape", [(), (1, 1), (3, 7), (ROWS, 1)])
def test_the_value(kind, bias, out, inputs, shape):
    layer = made(kind, out, inputs, bias)
    x = torch.randn(*shape, inputs, generator=torch.Generator().manual_seed(5)).bfloat16()
    exact = layer.to(torch.float64).weight  # the file's values
    layer = layer.to(torch.bfloat16)
    y = FourBits(layer)(x)
    assert y.dtype == torch.bfloat16
    wanted = x.double() @ exact.T + (layer.bias.double() if bias else 0)
    assert y.shape == wanted.shape
    # d and z are rounded by 2^-8 at most, and so is y: d |q - 8| and |z| are each no more than
    # the largest weight of a block and its range, below 3 times the row's largest weight.
    largest = x.double().abs() @ (exact.abs().amax(1, keepdim=True) * 3).T.expand(inputs, -1)
    limit = (largest + wanted.abs()) * 2**-8
    assert bool(((y.double() - wanted).abs() <= limit).all())
    # And far from the limit on the whole: within the rounding of bf16 weights and outputs.
    assert float((y.double() - wanted).norm() / wanted.norm()) < 2**-7


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1"])
def test_many_rows_and_readable_kernels_take_the_layer(kind):
    layer = made(kind, 32, 64, bias=True)
    four, few = FourBits(layer), torch.randn(2, 64).bfloat16()
    many = torch.randn(ROWS + 1, 64).bfloat16()
    assert torch.equal(four(many), layer(many))
    with using("reference"):
        assert torch.equal(four(few), layer(few))


@pytest.mark.parametrize(("layer", "told"), [
    (("Q4_0", 16, 32), None),
    (("Q4_1", 16, 32), None),
    (("Q8_0", 16, 32), "Q8_0 has no product of its own"),
    (("Q4_0", 17, 32), "17 outputs are no multiple of 16"),
])  # fmt: skip
def test_the_reason_is_told(layer, told):
    assert obstacle(made(*layer)) == told


def test_other_work_and_another_torch(monkeypatch):
    assert obstacle(made("Q4_0", 16, 32, dtype=torch.float32)) == (
        "the work is in float32, not in bf16"
    )
    assert obstacle(made("Q4_0", 16, 32).to("meta")) == "the model is on meta"
    monkeypatch.setattr(four_bits, "AVAILABLE", False)
    assert "has no such product" in str(obstacle(made("Q4_0", 16, 32)))
