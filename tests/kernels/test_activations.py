"""Every derivative is autograd's."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.activations import ACTIVATIONS


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_derivative_is_autograds(name):
    act = ACTIVATIONS[name]
    x = torch.linspace(-4, 4, 41, dtype=torch.float64).add(0.03).requires_grad_()
    g = torch.sin(torch.arange(41, dtype=torch.float64))
    y = act(x)
    (expected,) = torch.autograd.grad(y, x, g)
    got = act.backward(g, x.detach(), y.detach())
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
