"""AdamW over the trainable parameters, and the learning rate of every step.

The update is torch's (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2). The schedule is a
pure function of the step, so nothing about it needs saving.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

SCHEDULES = ("linear", "cosine", "constant")


def learning_rate(schedule: str, peak: float, warmup: int, steps: int, step: int) -> float:
    """The rate of `step`, counted from 0: up to `peak` over `warmup` steps, then down to nearly 0.

    Warm-up step k uses peak (k + 1) / warmup. Afterwards `linear` falls in equal parts and would
    be 0 one step past the last; `cosine` follows half a wave; `constant` stays.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * done)) / 2
    return peak


def adamw(
    parameters: Iterable[nn.Parameter],
    ratios: Mapping[nn.Parameter, float],
    *,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> torch.optim.AdamW:
    """One fused optimizer; weights of two or more dimensions decay, vectors do not.

    Each group's `ratio` is what its learning rate is multiplied by: 1 where `ratios` is silent.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dim() >= 2, ratios.get(parameter, 1.0)), []).append(parameter)
    rows = [
        {"params": found, "weight_decay": decay if matrix else 0.0, "ratio": ratio}
        for (matrix, ratio), found in groups.items()
    ]
    return torch.optim.AdamW(rows, betas=betas, eps=eps, fused=True)
