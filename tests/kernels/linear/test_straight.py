"""The direct product is its readable twin to float32, whatever the process is switched to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels.linear import straight
from minift.kernels.linear.reference import linears
from minift.kernels.linear.straight import NARROW, ROWS, Straight, possible

pytestmark = pytest.mark.skipif(not possible(), reason="this torch has no such operator")


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (3, 7), (ROWS, 1), (ROWS + 1,)])
@pytest.mark.parametrize(("inputs", "widths"), [(1, (1,)), (24, (36, 12, 12)), (65, (7, 1))])
@pytest.mark.parametrize("bias", [False, True])
def test_every_output(shape, inputs, widths, bias):
    members = [nn.Linear(inputs, width, bias=bias).requires_grad_(False) for width in widths]
    x = torch.randn(*shape, inputs, generator=torch.Generator().manual_seed(3))
    found = Straight(members)(x)
    exact = linears(x.double(), [m.double() for m in members])
    for y, wanted in zip(found, exact, strict=True):
        assert y.dtype == torch.float32
        # Sums of `inputs` products in float32, of numbers of size 1 and less.
        torch.testing.assert_close(y.double(), wanted, rtol=0, atol=(inputs + 2) * 2**-22)


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [2, 7, 36, NARROW, NARROW + 2])
def test_one_row_on_several_threads(width, bias, monkeypatch):
    batches, honest = [], torch.bmm
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "bmm", lambda x, y: batches.append(len(x)) or honest(x, y))
    member = nn.Linear(24, width, bias=bias)
    for shape in ((24,), (1, 1, 24), (3, 24)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        [y], [wanted] = Straight([member])(x), linears(x.double(), [member.double()])
        member.float()
        assert y.shape == wanted.shape
        torch.testing.assert_close(y.double(), wanted, rtol=0, atol=26 * 2**-22)
    assert batches == [2, 2] * (width in (2, 36, NARROW))


def test_gaps_and_weights_that_change():
    member = nn.Linear(24, 8).requires_grad_(False)
    form, x = Straight([member]), torch.randn(5, 48)[:, ::2]
    torch.testing.assert_close(form(x)[0], member(x), rtol=0, atol=1e-5)
    member.weight.mul_(2)
    torch.testing.assert_close(form(x)[0], member(x), rtol=0, atol=1e-5)


def test_many_rows_take_the_ordinary_way(monkeypatch):
    rows = []
    honest = straight.linears
    monkeypatch.setattr(straight, "linears", lambda x, m: rows.append(len(x)) or honest(x, m))
    form = Straight([nn.Linear(4, 4).requires_grad_(False)])
    form(torch.ones(ROWS, 4)), form(torch.ones(ROWS + 1, 4))
    assert rows == [ROWS + 1]
