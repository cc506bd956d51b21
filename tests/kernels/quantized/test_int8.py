"""8 bits by hand, and against plain loops in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minift.kernels.quantized import int8, reference
from minift.kernels.quantized.int8 import decode, encode


def test_by_hand():
    weight = torch.tensor([[1.27, -0.5, 0.014, 0.0], [-2.54, 1.0, 0.034, 2.54], [0.0] * 4])
    stored = encode(weight / 1.28)  # scales 1/128 and 1/64
    assert stored["scale"].tolist() == [2**-7, 2**-6, 0]
    assert stored["codes"].tolist() == [[127, -50, 1, 0], [-127, 50, 2, 127], [0] * 4]
    expected = torch.tensor([[127, -50, 1, 0], [-254, 100, 4, 254], [0] * 4]) / 128
    assert torch.equal(decode(stored), expected)


def test_a_scale_is_the_nearest_bf16_number():
    # 8 bits: between 1 and 2 they are 2^-7 apart, and a tie goes to the even one.
    for quotient, scale, code in ((1.0039, 1.0, 127), (1.004, 1 + 2**-7, 127), (1.002, 1.0, 127)):
        stored = encode(torch.tensor([[quotient * 127, 1.0]]))
        assert stored["scale"].tolist() == [scale]
        assert stored["codes"][0, 0] == code


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 65), (64, 576)])
def test_plain_loops_give_the_same_codes(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05
    stored, w = encode(weight), weight.double().numpy()
    for i in range(shape[0]):
        largest = max(abs(x) for x in w[i])
        scale = stored["scale"][i].item()
        assert abs(scale - largest / 127) <= largest / 127 * 2**-8
        for j in range(shape[1]):
            assert stored["codes"][i, j].item() == round(w[i, j] / scale)
    error = np.abs(decode(stored).double().numpy() - w)
    assert (error <= stored["scale"].numpy()[:, None] * 0.5001).all()


def test_what_has_no_scale_is_refused_or_zero():
    with pytest.raises(ValueError, match="not finite"):
        encode(torch.tensor([[1.0, float("nan")]]))
    stored = encode(torch.full((2, 3), 1e-45))  # a 127th of it is no float32
    assert torch.equal(decode(stored), torch.zeros(2, 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 4])
def test_pieces_encode_as_the_whole(at, bad, monkeypatch):
    weight = torch.randn(5, 33)
    before, whole = weight.clone(), encode(weight)
    for numbers in (1, 2 * 33):
        monkeypatch.setattr(int8, "AT_ONCE", numbers)
        assert all(torch.equal(x, whole[name]) for name, x in encode(weight).items())
    assert torch.equal(weight, before)
    weight[at, 7] = bad
    with pytest.raises(ValueError, match="not finite"):
        encode(weight)


def test_other_dtypes_come_as_float32():
    weight = torch.randn(4, 8).bfloat16()
    assert all(torch.equal(a, b) for a, b in zip(
        encode(weight).values(), encode(weight.float()).values(), strict=True))  # fmt: skip
    assert decode(encode(weight)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("serial", [1, 3 * 65])  # a row is longer, or three are one piece
def test_pieces_and_dtypes_change_nothing(dtype, serial, monkeypatch):
    stored = encode(torch.randn(32, 65))
    whole = decode(stored)
    assert torch.equal(whole, stored["codes"] * stored["scale"][:, None])
    monkeypatch.setattr(reference, "SERIAL", serial)
    assert torch.equal(decode(stored), whole)
    assert torch.equal(decode(stored, dtype), whole.to(dtype))
