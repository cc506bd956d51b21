"""Which form the loss takes: the fused one for a head that is one frozen matrix, as it came."""

from __future__ import annotations

import math

from torch import Tensor, nn

from minift.errors import ConfigError
from minift.kernels import choice
from minift.kernels.cross_entropy import reference
from minift.kernels.lora.reference import Adapted


def linear_cross_entropy(
    hidden: Tensor,
    head: nn.Module | None,
    logits: reference.Head,
    targets: Tensor,
    cap: float | None,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum of the negative log-probabilities: hidden (N, D), targets (N,) -> a float32+ scalar.

    weights (N,), float32 or better: what each row counts, and 0 takes it out. `logits` is what
    `head` and `cap` (and whatever hangs on the head) make of hidden states.
    """
    matrix = frozen_matrix(head)
    if matrix is None:
        return reference.linear_cross_entropy(hidden, logits, targets, weights=weights)
    if choice.triton(hidden):
        from minift.kernels.cross_entropy import triton

        return triton.linear_cross_entropy(hidden, matrix, targets, cap, weights)
    from minift.kernels.cross_entropy import fused

    return fused.linear_cross_entropy(hidden, matrix, targets, cap, weights)


def token_logprobs(
    hidden: Tensor,
    head: nn.Module | None,
    logits: reference.Head,
    targets: Tensor,
    cap: float | None,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """log p(target) and the entropy: hidden (N, D), targets (N,) -> float32+ (N,), (N,), nats."""
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature: found {temperature}, allowed a number above 0")
    matrix = frozen_matrix(head)
    if matrix is not None:
        from minift.kernels.cross_entropy import fused

        return fused.token_logprobs(hidden, matrix, targets, cap, temperature)
    return reference.token_logprobs(hidden, logits, targets, temperature)


def frozen_matrix(head: nn.Module | None) -> nn.Linear | None:
    """The head, where the fused form may run and computes what calling it would."""
    plain = type(head) is nn.Linear and Adapted(head).frozen
    return head if choice.fused() and plain and isinstance(head, nn.Linear) else None
