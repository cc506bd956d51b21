"""The kernels' elementwise functions are those of torch, and their slopes autograd's."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.activations import ACTIVATIONS

# Both sides of where tanh changes its formula, and far out.
POINTS = [0.0, 1e-6, 1e-3, 0.0999, 0.1001, 0.5, 1.0, 3.0, 9.0, 30.0]


def values_and_slopes(interpreted, x, name):
    """f(x) and f'(x), as the kernels of an MLP without a gate use them."""
    mlp = interpreted("mlp.triton")
    y = mlp.hidden_of([x], ACTIVATIONS[name])
    ((slope,), _) = mlp.gradients_of(torch.ones_like(x), [x], ACTIVATIONS[name], False)
    return y.double(), slope.double()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_value_and_slope(interpreted, name, dtype, limit):
    x = torch.tensor([*POINTS, *(-p for p in POINTS)], dtype=dtype)
    exact = x.double().requires_grad_()
    y = ACTIVATIONS[name](exact)
    (slope,) = torch.autograd.grad(y.sum(), exact)
    for found, expected in zip(values_and_slopes(interpreted, x, name), (y.detach(), slope),
                               strict=True):  # fmt: skip
        torch.testing.assert_close(found, expected, rtol=limit, atol=limit / 3)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-14), (torch.float32, 5e-7)])
def test_tanh_keeps_its_digits_near_zero(interpreted, dtype, limit):
    """Relative: 1 - exp(-2 x) alone would be 6 % off at 1e-6 in float32."""
    x = torch.logspace(-6, 1, 30, dtype=dtype)
    found, _ = values_and_slopes(interpreted, x, "tanh")
    torch.testing.assert_close(found, x.double().tanh(), rtol=limit, atol=0)


def test_what_kernels_compute_in(interpreted):
    functions = interpreted("activations_triton")
    found = [str(functions.wide(d)) for d in (torch.float64, torch.float32, torch.bfloat16)]
    assert found == ["fp64", "fp32", "fp32"]
