"""AdamW over the trainable parameters, and the learning rate of every step.

The update is torch's (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2). The schedule is a
pure function of the step, so nothing about it needs saving.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

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
    parameters: Iterable[nn.Parameter], *, betas: tuple[float, float], eps: float, decay: float
) -> torch.optim.AdamW:
    """One fused optimizer; weights of two or more dimensions decay, vectors do not."""
    trained = list(parameters)
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=betas, eps=eps, fused=True)
