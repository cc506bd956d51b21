"""Products on the stored 8 bits against the decoded matrix, and who takes which way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.choice import using
from minift.kernels.quantized import direct, int8
from minift.kernels.quantized import linear as file
from minift.kernels.quantized.linear import QuantizedLinear

pytestmark = pytest.mark.skipif(not direct.AVAILABLE, reason="this torch has no such product")


def made(out, inputs, bias=False, dtype=torch.bfloat16, kind="int8"):
    generator = torch.Generator().manual_seed(out + inputs)
    # Rows of very different sizes, one of zeros.
    size = torch.logspace(-3, 3, out)[:, None]
    weight = torch.randn(out, inputs, generator=generator) * size
    weight[out // 2] = 0
    b = nn.Parameter(torch.randn(out, generator=generator).to(dtype)) if bias else None
    return QuantizedLinear.of(kind, weight.to(dtype), b)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("out", "inputs"), [(1, 32), (3, 64), (64, 64), (17, 96), (96, 576)])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3, 7), (32, 1)])
def test_the_value_is_rounded_twice_at_most(out, inputs, shape, bias):
    layer = made(out, inputs, bias)
    x = torch.randn(*shape, inputs, generator=torch.Generator().manual_seed(5)).bfloat16()
    with torch.no_grad():
        assert direct.fits("int8", x)
        y = layer(x)
    plain = x.double() @ int8.decode(layer.stored, torch.float64).T
    exact = plain + layer.bias.double() if bias else plain
    assert y.dtype == torch.bfloat16
    assert y.shape == exact.shape
    # s x qᵀ is rounded to 8 bits, and again with b: 2^-8 each; float32 sums of `inputs` terms.
    largest = x.double().abs() @ int8.decode(layer.stored, torch.float64).abs().T
    limit = (plain.abs() + bias * exact.abs()) * 2**-8 + largest * inputs * 2**-23
    assert bool(((y.double() - exact).abs() <= limit * 1.01 + 1e-12).all())


def test_it_is_no_worse_than_decoding():
    layer = made(96, 576)
    x = torch.randn(16, 576, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = x.double() @ int8.decode(layer.stored, torch.float64).T
    rows = exact.norm(dim=0) + 1e-30
    with torch.no_grad():
        mine = ((layer(x).double() - exact).norm(dim=0) / rows).max()
        with using("reference"):
            twin = ((layer(x).double() - exact).norm(dim=0) / rows).max()
    assert float(mine) < 1.5 * float(twin)


def test_an_input_with_gaps():
    layer, x = made(16, 32), torch.randn(4, 64).bfloat16()[:, ::2]
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x.contiguous()))
        assert torch.equal(layer.product(x), layer(x))


def decodes(monkeypatch, layer, x):
    """Whether the weight is decoded for the product of x."""
    calls, honest = [], file.decode
    monkeypatch.setattr(file, "decode", lambda *a: calls.append(1) or honest(*a))
    layer(x)
    monkeypatch.setattr(file, "decode", honest)
    return bool(calls)


def test_who_decodes(monkeypatch):
    layer = made(16, 32)
    few, many = torch.randn(32, 32).bfloat16(), torch.randn(33, 32).bfloat16()
    assert decodes(monkeypatch, layer, few)  # a backward pass may follow
    with torch.no_grad():
        assert not decodes(monkeypatch, layer, few)
        assert decodes(monkeypatch, layer, many)
        assert decodes(monkeypatch, made(16, 32, dtype=torch.float32), few.float())
        odd = made(16, 33)  # beyond whose rows the kernel would read
        assert decodes(monkeypatch, odd, torch.randn(1, 33).bfloat16())
        assert decodes(monkeypatch, made(16, 64, kind="nf4"), torch.randn(1, 64).bfloat16())
        with using("reference"):
            assert decodes(monkeypatch, layer, few)


@pytest.mark.parametrize(("found", "told"), [
    (("int8", 64, torch.bfloat16, "cpu"), None),
    (("int8", 64, torch.float32, "cpu"), "the work is in float32, which needs --dtype bf16"),
    (("int8", 72, torch.bfloat16, "cpu"), "rows of 72 are no multiple of 32"),
    (("int8", 64, torch.bfloat16, "meta"), "the model is on meta"),
    (("nf4", 64, torch.bfloat16, "cpu"), "nf4 has no product of its own"),
])  # fmt: skip
def test_the_reason_is_told(found, told):
    assert direct.obstacle(*found[:3], torch.device(found[3])) == told


def test_another_torch(monkeypatch):
    monkeypatch.setattr(direct, "AVAILABLE", False)
    told = direct.obstacle("int8", 64, torch.bfloat16, torch.device("cpu"))
    assert told == f"torch {torch.__version__} has no such product"
    with torch.no_grad():
        assert not direct.fits("int8", torch.randn(1, 64).bfloat16())
