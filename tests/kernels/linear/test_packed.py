"""The packed product is its readable twin, to the rounding of bf16."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.linear.packed import Packed, possible
from minift.kernels.linear.reference import linears

pytestmark = pytest.mark.skipif(not possible(), reason="this CPU or torch packs no bf16")
WIDTHS = [(64,), (36, 12, 12), (1, 7), (96, 96)]


def made(inputs, widths, biases):
    generator = torch.Generator().manual_seed(inputs)
    members = []
    for i, width in enumerate(widths):
        member = nn.Linear(inputs, width, bias=biases[i % len(biases)])
        for p in member.parameters():
            p.data = torch.randn(p.shape, generator=generator)
        members.append(member.bfloat16().requires_grad_(False))
    return members


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("inputs", [1, 24, 65])
@pytest.mark.parametrize("biases", [(False,), (True,), (True, False)])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3, 7), (8, 1), (1, 128)])
def test_every_output(widths, inputs, biases, shape):
    members = made(inputs, widths, biases)
    x = torch.randn(*shape, inputs, generator=torch.Generator().manual_seed(3)).bfloat16()
    with torch.no_grad():
        found, twin = Packed(members)(x), linears(x, members)
        exact = linears(x.double(), [m.double() for m in members])
    for y, other, wanted in zip(found, twin, exact, strict=True):
        assert y.dtype == torch.bfloat16
        assert y.shape == other.shape == wanted.shape
        # Sums in float32 and one rounding to bf16: half a unit of 8 bits, 2^-8 of the value, and
        # as much of the largest term that a sum may have lost to cancellation in float32.
        limit = wanted.abs() * 2**-8 + (inputs + 1) * 8 * 2**-22
        assert bool(((y.double() - wanted).abs() <= limit).all())
        assert bool(((other.double() - wanted).abs() <= limit).all())


def test_an_input_with_gaps():
    [member] = made(24, (8,), (True,))
    x = torch.randn(5, 48).bfloat16()[:, ::2]
    with torch.no_grad():
        [y] = Packed([member])(x)
        torch.testing.assert_close(y, member(x.contiguous()), rtol=2**-7, atol=1e-3)


def test_it_holds_one_copy_and_is_no_view():
    [member] = made(64, (96,), (False,))
    packed = Packed([member])
    assert packed.matrix.numel() == member.weight.numel()
    with torch.no_grad():
        before = packed(torch.ones(1, 64).bfloat16())[0].clone()
        member.weight.zero_()
        assert torch.equal(packed(torch.ones(1, 64).bfloat16())[0], before)
