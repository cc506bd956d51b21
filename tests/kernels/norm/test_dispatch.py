"""A norm that is trained takes the readable form, any other the fused one."""

from __future__ import annotations

import torch

from minift.kernels.choice import using
from minift.kernels.norm.dispatch import rms_norm


def test_who_runs():
    x, weight = torch.randn(2, 4, requires_grad=True), torch.ones(4)
    assert "RMSNorm" in str(rms_norm(x, weight, 1e-5).grad_fn)
    trained = weight.clone().requires_grad_()
    y = rms_norm(x, trained, 1e-5)
    assert "RMSNorm" not in str(y.grad_fn)
    assert torch.autograd.grad(y.sum(), trained)[0].shape == (4,)
    with using("reference"):
        assert "RMSNorm" not in str(rms_norm(x, weight, 1e-5).grad_fn)


def test_without_gradients_no_function_is_called(monkeypatch):
    x, weight = torch.randn(2, 4, requires_grad=True), torch.ones(4)
    fused = rms_norm(x, weight, 1e-5)
    monkeypatch.setattr("minift.kernels.norm.dispatch.fused", None)
    with torch.no_grad():
        assert torch.equal(rms_norm(x, weight, 1e-5), fused)
