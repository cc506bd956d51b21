"""The grouped change is the sum of its readable twins."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.lora.reference import Adapted, low_rank
from minift.kernels.lora.thin import Thin

GROUPS = [((3,), (8,)), ((1, 64), (5, 7)), ((2, 0, 8), (12, 4, 4)), ((0, 3), (6, 6))]


def members(ranks, widths, inputs, dtype):
    generator = torch.Generator().manual_seed(sum(widths))
    for i, (rank, width) in enumerate(zip(ranks, widths, strict=True)):
        A = torch.randn(rank, inputs, generator=generator, dtype=torch.float64).to(dtype)
        B = torch.randn(width, rank, generator=generator, dtype=torch.float64).to(dtype)
        linear = nn.Linear(inputs, width, dtype=dtype)
        yield Adapted(linear, A, B, 0.5 + i) if rank else Adapted(linear)


@pytest.mark.parametrize(("ranks", "widths"), GROUPS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (8, 1), (128,)])
def test_what_each_change_adds(ranks, widths, shape):
    group = list(members(ranks, widths, 10, torch.float64))
    x = torch.randn(*shape, 10, dtype=torch.float64)
    for y, m in zip(Thin(group)(x), group, strict=True):
        expected = torch.zeros_like(y) if m.A is None else low_rank(x, m.A, m.B, m.scale, 0.0)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


def test_on_bf16_inputs_it_is_computed_in_the_changes_own_precision():
    [m] = members((8,), (16,), 32, torch.float32)
    x = torch.randn(4, 32).bfloat16()
    [y] = Thin([m])(x)
    assert y.dtype == torch.bfloat16
    exact = (x.double() @ m.A.double().T @ m.B.double().T) * m.scale
    # One rounding to bf16 (2^-8 of the value); the products before it are float32.
    assert bool(((y.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all())


def test_it_follows_no_later_change_and_keeps_no_graph():
    [m] = members((2,), (4,), 6, torch.float64)
    m.A.requires_grad_(), m.B.requires_grad_()
    thin, x = Thin([m]), torch.ones(1, 6, dtype=torch.float64)
    before = thin(x)[0].clone()
    assert not before.requires_grad
    with torch.no_grad():
        m.A.zero_()
    assert torch.equal(thin(x)[0], before)
