"""A frozen matrix as it came is the fused form's; whatever else a head may be is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minift.errors import ConfigError
from minift.kernels.choice import using
from minift.kernels.cross_entropy.dispatch import linear_cross_entropy, token_logprobs


def frozen():
    return nn.Linear(3, 5, bias=False).requires_grad_(False)


def hooked():
    head = frozen()
    head.register_forward_hook(lambda module, inputs, out: out + 1)
    return head


class Other(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("head", "expected"),
    [(frozen(), True), (nn.Linear(3, 5, bias=False), False), (hooked(), False),
     (Other(3, 5), False)],
)  # fmt: skip
def test_who_runs(head, expected):
    hidden, targets = torch.randn(4, 3, requires_grad=True), torch.tensor([1, 0, 4, 2])
    loss = linear_cross_entropy(hidden, head, head, targets, None)
    assert ("LinearCrossEntropy" in str(loss.grad_fn)) == expected
    with using("reference"):
        twin = linear_cross_entropy(hidden, head, head, targets, None)
    assert "LinearCrossEntropy" not in str(twin.grad_fn)
    torch.testing.assert_close(loss, twin)
    rows = token_logprobs(hidden, head, head, targets, None, 0.5)
    assert all(("TokenLogprobs" in str(y.grad_fn)) == expected for y in rows)
    with using("reference"):
        twins = token_logprobs(hidden, head, head, targets, None, 0.5)
    assert not any("TokenLogprobs" in str(y.grad_fn) for y in twins)
    torch.testing.assert_close(rows, twins)


@pytest.mark.parametrize("head", [frozen(), nn.Linear(3, 5, bias=False)])
def test_weights_reach_either_form(head):
    hidden, targets = torch.randn(4, 3, dtype=torch.float64), torch.tensor([1, 0, 4, 2])
    head, weights = head.double(), torch.tensor([1.0, 0, 1, 0], dtype=torch.float64)
    loss = linear_cross_entropy(hidden, head, head, targets, None, weights)
    some = linear_cross_entropy(hidden[::2], head, head, targets[::2], None)
    torch.testing.assert_close(loss, some)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_cannot_be(temperature):
    hidden, targets = torch.randn(4, 3), torch.tensor([1, 0, 4, 2])
    with pytest.raises(ConfigError, match="temperature: found"):
        token_logprobs(hidden, frozen(), frozen(), targets, None, temperature)
