"""The fused form runs where it computes the same, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.kernels import choice
from minift.kernels.choice import using
from minift.kernels.lora.dispatch import RANKS, adapted_linears, fits, in_triton
from minift.kernels.lora.reference import Adapted


def member(drop=0.0, dtype=torch.float32, trained=False, exact=False):
    linear = nn.Linear(4, 3).requires_grad_(trained)
    A, B = (torch.randn(*s, dtype=dtype, requires_grad=True) for s in ((2, 4), (3, 2)))
    return Adapted(linear, A, B, 1.0, drop, exact)


def watched():
    found = member()
    found.linear.register_forward_hook(lambda *parts: None)
    return found


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([member(), member()], True),
        ([member(), Adapted(nn.Linear(4, 3).requires_grad_(False))], True),
        ([member(0.1), member(0.1)], True),
        ([member(0.1), member(0.2)], False),
        ([member(dtype=torch.float64)], False),
        ([member(trained=True)], False),
        ([member(exact=True)], True),  # on float32; in bf16: see below
        ([watched()], False),
    ],
)
def test_what_fits(members, expected):
    x = torch.randn(2, 4)
    assert fits(x, members) == expected
    node = str(adapted_linears(x.requires_grad_(), members)[0].grad_fn.next_functions)
    assert ("Group" in node) == expected
    with using("reference"):
        assert not fits(x, members)


def test_without_gradients_a_trainable_linear_is_as_good_as_a_frozen_one():
    with torch.no_grad():
        assert fits(torch.randn(2, 4), [member(trained=True)])


def test_a_change_that_must_be_exact_is_not_rounded_to_a_bf16_base():
    for exact in (False, True):
        half = member(exact=exact)
        half.linear.bfloat16()
        assert fits(torch.randn(2, 4).bfloat16(), [half]) != exact


def test_ranks_that_are_not_thin_stay_with_torch(monkeypatch):
    monkeypatch.setattr(choice, "triton", lambda x: True)

    def of(rank):
        return Adapted(nn.Linear(4, 3), torch.ones(rank, 4), torch.ones(3, rank))

    x = torch.ones(1, 4)
    assert in_triton(x, [of(RANKS), Adapted(nn.Linear(4, 3))])
    assert not in_triton(x, [of(RANKS), of(1)])
