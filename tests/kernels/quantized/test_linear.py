"""The layer against the dense one: values, gradients, what it keeps, where it goes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minift.kernels.quantized import linear as file
from minift.kernels.quantized.linear import (
    ENCODED,
    QuantizedLinear,
    base_of,
    dense_tensors,
    numbers,
    quantized,
)

KINDS = ("int8", "nf4", "Q8_0", "Q4_0", "Q4_1")


def layer(kind, shape=(24, 64), bias=True, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(shape, generator=generator).to(dtype) * 0.1
    b = nn.Parameter(torch.randn(shape[0], generator=generator).to(dtype)) if bias else None
    return QuantizedLinear.of(kind, weight, b)


def dense(stored):
    twin = nn.Linear(stored.in_features, stored.out_features, bias=stored.bias is not None,
                     dtype=stored.weight.dtype)  # fmt: skip
    twin.weight.data = stored.weight
    if stored.bias is not None:
        twin.bias.data = stored.bias.detach().clone()
    return twin


def test_every_kind_is_here():
    assert ENCODED == KINDS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 1, 64), (3, 7, 64)])
def test_values_and_gradients_are_those_of_the_dense_layer(kind, bias, shape):
    one = layer(kind, bias=bias, dtype=torch.float64)
    other = dense(one)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = other.requires_grad_(True)(x)
    g = torch.randn_like(y)
    expected = torch.autograd.grad(y, [x, other.bias] if bias else [x], g)
    mine = one.requires_grad_(True)(x)
    found = torch.autograd.grad(mine, [x, one.bias] if bias else [x], g)
    assert torch.equal(mine, y)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    assert torch.equal(one.product(x), F.linear(x, one.weight))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 65), (5, 130)])
def test_odd_sizes_pass_the_gradient_check(kind, shape):
    one = layer(kind, shape, dtype=torch.float64)
    x = torch.randn(2, 3, shape[1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(one, (x,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_of_the_work_rounds_the_decoded_weight_once(kind, dtype):
    one = layer(kind).to(dtype)
    assert one.weight.dtype == dtype
    assert torch.equal(one.weight, layer(kind).weight.to(dtype))
    x = torch.randn(2, 5, 64, dtype=dtype, requires_grad=True)
    y = one(x)
    assert torch.equal(y, dense(one)(x))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    # And back: the stored tensors were never rounded.
    assert torch.equal(one.float().weight, layer(kind).weight)


def test_an_input_of_another_dtype_is_refused_as_by_the_dense_layer():
    with pytest.raises(RuntimeError):
        layer("nf4")(torch.randn(1, 64, dtype=torch.bfloat16))


@pytest.mark.parametrize("kind", KINDS)
def test_autograd_keeps_nothing_of_the_weights_size(kind):
    one, kept = layer(kind, (96, 64)), []
    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        one(x)
    assert kept == []


def test_the_weight_is_decoded_again_for_the_backward_pass(monkeypatch):
    one, calls = layer("nf4"), []
    honest = file.decode
    monkeypatch.setattr(file, "decode", lambda *a: calls.append(1) or honest(*a))
    y = one(torch.randn(2, 64, requires_grad=True))
    assert len(calls) == 1
    y.sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_linear_without_a_weight_parameter(kind):
    one = layer(kind)
    assert isinstance(one, nn.Linear)
    assert [name for name, _ in one.named_parameters()] == ["bias"]
    assert not one.weight.requires_grad
    with pytest.raises(KeyError):
        one.weight = nn.Parameter(torch.zeros(24, 64))
    assert repr(one) == f"QuantizedLinear({kind}, in_features=64, out_features=24, bias=True)"


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_the_stored_tensors(kind):
    one, other = layer(kind), layer(kind)
    for name in other.names:
        other.get_buffer(name).zero_()
    assert not torch.equal(one.weight, other.weight)
    assert set(one.state_dict()) == {"bias", *one.names}
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(copy.deepcopy(one).weight, one.weight)
    assert one.to("meta").like.device.type == "meta"
    assert all(one.get_buffer(name).device.type == "meta" for name in one.names)


def test_a_twin_shares_what_is_stored():
    one = layer("nf4")
    twin = one.twin(None)
    assert twin.bias is None
    assert twin.get_buffer("codes").data_ptr() == one.get_buffer("codes").data_ptr()
    assert torch.equal(twin.weight, one.weight)


def test_a_whole_model():
    model = nn.Sequential(nn.Linear(64, 32), layer("nf4", (24, 32)), nn.Linear(24, 8))
    assert [path for path, _ in quantized(model)] == ["1"]
    assert base_of(model) == "nf4"
    assert base_of(nn.Sequential(layer("Q4_0"))) == "gguf"
    assert base_of(nn.Linear(2, 2)) is None
    assert numbers(model) == 64 * 32 + 32 + 24 * 32 + 24 + 24 * 8 + 8
    found = dense_tensors(model)
    assert set(found) == {f"{i}.{leaf}" for i in range(3) for leaf in ("weight", "bias")}
    assert torch.equal(found["1.weight"], model[1].weight)


def test_bytes_are_those_of_the_buffers():
    one = layer("int8", (24, 64))
    assert one.bytes == 24 * 64 + 24 * 4
    assert layer("Q4_1", (24, 64)).bytes == 24 * 64 * 20 // 32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_the_decoded_weight_is_the_same(kind, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products
    one = layer(kind)
    expected = one.weight
    moved = one.to("cuda")
    assert torch.equal(moved.weight.cpu(), expected)
    x = torch.randn(2, 64, device="cuda", requires_grad=True)
    moved(x).sum().backward()
    assert x.grad is not None
