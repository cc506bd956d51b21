"""Rows with changes of their own: batched against one by one, values and all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.choice import using
from minift.kernels.lora import dispatch, reference, rows
from minift.kernels.lora.reference import Adapted, adapted_linear

IN = 7


def linear(out, dtype):
    layer = nn.Linear(IN, out).to(dtype).requires_grad_(False)
    layer.weight.data.normal_()
    return layer


def members(dtype=torch.float64, wide=torch.float64):
    """Two linears, three adapters: ranks 1, 8 and 3; the second linear has none of the first."""
    torch.manual_seed(3)
    found = []
    for out, ranks in ((5, (1, 8, 3)), (4, (0, 2, 3))):
        layer, changes = linear(out, dtype), []
        for k, rank in enumerate(ranks):
            A = torch.randn(rank, IN, dtype=wide).requires_grad_() if rank else None
            B = torch.randn(out, rank, dtype=wide).requires_grad_() if rank else None
            changes.append(Adapted(layer, A, B, 0.5 + k))
        found.append(changes)
    return found


def thin(found):
    return [t for changes in found for one in changes for t in (one.A, one.B) if t is not None]


@pytest.mark.parametrize("which", [(0, 1, 2), (-1, 2, 2, 0), (1,), (-1, -1)])
@pytest.mark.parametrize("T", [1, 6])
def test_values_and_all_gradients(which, T):
    found = members()
    x = torch.randn(len(which), T, IN, dtype=torch.float64).requires_grad_()
    results = []
    for form in (rows, reference):
        ys = form.adapted_rows(x, found, which)
        g = [torch.sin(torch.arange(y.numel()).double()).view(y.shape) for y in ys]
        grads = torch.autograd.grad(ys, [x, *thin(found)], g, allow_unused=True)
        results.append([*ys, *(torch.zeros(()) if d is None else d for d in grads)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b.expand_as(a), rtol=0, atol=1e-12)


def test_each_row_is_that_of_its_adapter_alone():
    found = members()
    x = torch.randn(4, 3, IN, dtype=torch.float64)
    ys = rows.adapted_rows(x, found, (2, -1, 0, 1))
    for y, changes in zip(ys, found, strict=True):
        for b, k in enumerate((2, -1, 0, 1)):
            one = changes[k] if k >= 0 else Adapted(changes[0].linear)
            torch.testing.assert_close(y[b], adapted_linear(x[b], one), rtol=0, atol=1e-12)


def test_on_a_bf16_base_the_change_is_rounded_once():
    """As in the twin: the two differ by the order of a float32 sum, half a unit of bf16 at most."""
    found = members(torch.bfloat16, torch.float32)
    x = torch.randn(3, 5, IN).bfloat16()
    for a, b in zip(
        rows.adapted_rows(x, found, (0, 1, -1)), reference.adapted_rows(x, found, (0, 1, -1)),
        strict=True,
    ):  # fmt: skip
        assert a.dtype == torch.bfloat16
        torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-6)


def test_without_any_change_the_linears_run_alone():
    layer = linear(5, torch.float64)
    x = torch.randn(2, 3, IN, dtype=torch.float64)
    assert torch.equal(rows.adapted_rows(x, [[Adapted(layer)]], (-1, -1))[0], layer(x))


def test_the_choice(monkeypatch):
    calls = []
    for form in (rows, reference):
        monkeypatch.setattr(form, "adapted_rows", lambda *a, form=form: calls.append(form))
    for kernels in ("auto", "reference"):
        with using(kernels):
            dispatch.adapted_rows(torch.zeros(1, 1, IN), [], ())
    assert calls == [rows, reference]
