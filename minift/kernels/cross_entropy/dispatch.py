"""Which form the loss takes: the fused one for a head that is one frozen matrix, as it came."""

from __future__ import annotations

from torch import Tensor, nn

from minift.kernels import choice
from minift.kernels.cross_entropy import fused, reference
from minift.kernels.lora.reference import Adapted


def linear_cross_entropy(
    hidden: Tensor,
    head: nn.Module | None,
    logits: reference.Head,
    targets: Tensor,
    cap: float | None,
) -> Tensor:
    """Sum of the negative log-probabilities: hidden (N, D), targets (N,) -> a float32+ scalar.

    `logits` is what `head` and `cap` (and whatever hangs on the head) make of hidden states.
    """
    plain = type(head) is nn.Linear and Adapted(head).frozen
    if choice.fused() and plain and isinstance(head, nn.Linear):
        return fused.linear_cross_entropy(hidden, head, targets, cap)
    return reference.linear_cross_entropy(hidden, logits, targets)
