"""Seeds of dropout masks: a function of what is computed, not of what was computed before it.

    seed = hash(run seed, step, micro-batch, site)       site: a number for a module's name

Inside `keyed`, a mask depends on nothing else: on no evaluation or sampling in between, not on the
order of the micro-batches, and a forward pass that is repeated (activation checkpointing, a resumed
run) has the masks of the first. Outside, and in the readable forms, seeds are drawn by torch's own
generator. The hash is splitmix64's (Steele et al. 2014).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

WORD = 2**64 - 1
# Not a ContextVar: on a GPU autograd runs the backward pass in a thread of its own.
_key: int | None = None


def mix(state: int, part: int) -> int:
    """The next state of a hash that has taken in one more number."""
    z = ((state ^ (part & WORD)) + 0x9E3779B97F4A7C15) & WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


@contextmanager
def keyed(*parts: int) -> Iterator[None]:
    """Inside, every seed is a function of `parts` and of its site."""
    global _key
    before, state = _key, 0
    for part in parts:
        state = mix(state, part)
    _key = state
    try:
        yield
    finally:
        _key = before


def seed(site: int) -> int:
    """A seed in 0 to 2**62 - 1."""
    return int(torch.randint(2**62, ())) if _key is None else mix(_key, site) >> 2


def seed_on(device: torch.device, site: int) -> Any:
    """A seed as a tensor (1,) on the device that will read it; nothing waits for it."""
    if _key is None:
        return torch.randint(2**62, (1,), device=device)
    return torch.full((1,), seed(site), device=device, dtype=torch.long)
