"""Which form runs: the fused one, trained or not, unless the readable ones are asked for."""

from __future__ import annotations

import torch

from minift.kernels.choice import using
from minift.kernels.norm.dispatch import rms_norm


def test_who_runs():
    x, weight = torch.randn(2, 4, requires_grad=True), torch.ones(4)
    for one in (weight, weight.clone().requires_grad_()):
        assert "RMSNorm" in str(rms_norm(x, one, 1e-5).grad_fn)
        with using("reference"):
            assert "RMSNorm" not in str(rms_norm(x, one, 1e-5).grad_fn)
    assert torch.autograd.grad(rms_norm(x, one, 1e-5).sum(), one)[0].shape == (4,)


def test_without_gradients_no_function_is_called(monkeypatch):
    x, weight = torch.randn(2, 4, requires_grad=True), torch.ones(4)
    fused = rms_norm(x, weight, 1e-5)
    monkeypatch.setattr("minift.kernels.norm.fused.RMSNorm", None)
    with torch.no_grad():
        assert torch.equal(rms_norm(x, weight, 1e-5), fused)
