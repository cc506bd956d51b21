"""Learning rates by hand, and which weights decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.train.optimizer import SCHEDULES, adamw, learning_rate

ROOT = 2**-0.5  # cos(pi / 4)


@pytest.mark.parametrize(("schedule", "warmup", "steps", "expected"), [
    ("linear", 0, 4, [8, 6, 4, 2]),
    ("linear", 2, 6, [4, 8, 8, 6, 4, 2]),
    ("cosine", 0, 4, [8, 4 + 4 * ROOT, 4, 4 - 4 * ROOT]),
    ("cosine", 1, 3, [8, 8, 4]),
    ("constant", 0, 3, [8, 8, 8]),
    ("constant", 4, 6, [2, 4, 6, 8, 8, 8]),
    ("linear", 0, 1, [8]),
    ("linear", 3, 3, [8 / 3, 16 / 3, 8]),
    ("cosine", 4, 2, [2, 4]),
])  # fmt: skip
def test_rates_by_hand(schedule, warmup, steps, expected):
    found = [learning_rate(schedule, 8.0, warmup, steps, k) for k in range(steps)]
    assert found == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 10, 100])
def test_rates_rise_to_the_peak_and_never_rise_again(schedule, warmup):
    rates = [learning_rate(schedule, 0.3, warmup, 100, k) for k in range(100)]
    assert all(0 < rate <= 0.3 for rate in rates)
    top = max(warmup - 1, 0)
    assert rates[top] == max(rates) == 0.3
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_only_matrices_decay():
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
    optimizer = adamw([matrix, vector], {}, betas=(0.9, 0.99), eps=1e-8, decay=0.5)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    matrix.grad, vector.grad = torch.zeros(2, 2), torch.zeros(3)
    optimizer.step()
    assert matrix.tolist() == [[pytest.approx(0.95)] * 2] * 2  # 1 - lr * decay
    assert vector.tolist() == [1.0] * 3


def test_two_updates_by_hand():
    """Algorithm 2 on one number: g = 1 then g = -3."""
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = adamw([weight], {}, betas=(0.5, 0.75), eps=0.0, decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    weight.grad = torch.tensor([[1.0]])
    optimizer.step()
    assert weight.item() == pytest.approx(1.9)  # m/(1-.5) = 1, v/(1-.25) = 1
    weight.grad = torch.tensor([[-3.0]])
    optimizer.step()
    # m = 0.25 - 1.5 = -1.25, over 0.75; v = 0.1875 + 2.25 = 2.4375, over 0.4375
    step = (-1.25 / 0.75) / (2.4375 / 0.4375) ** 0.5
    assert weight.item() == pytest.approx(1.9 - 0.1 * step)


@pytest.mark.parametrize("shape", [(2, 2), (2,)])
def test_a_group_without_parameters_is_left_out(shape):
    weight = nn.Parameter(torch.ones(shape))
    optimizer = adamw([weight], {}, betas=(0.9, 0.99), eps=1e-8, decay=0.1)
    assert len(optimizer.param_groups) == 1


def test_a_ratio_is_a_group_of_its_own():
    one, other, vector = (nn.Parameter(torch.ones(s)) for s in ((2, 2), (2, 3), (4,)))
    optimizer = adamw([one, other, vector], {other: 16.0}, betas=(0.9, 0.99), eps=1e-8, decay=0.1)
    found = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert [found[id(p)]["ratio"] for p in (one, other, vector)] == [1.0, 16.0, 1.0]
    assert [found[id(p)]["weight_decay"] for p in (one, other, vector)] == [0.1, 0.1, 0.0]
