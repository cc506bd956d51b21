"""Which kernels run: the fused ones, or the readable twins that they are held to.

with using("reference"): ...      every operation by its reference.py
with using("auto"): ...           the fused form wherever it applies: what everything starts with

Each operation has one dispatch.py, which asks here and then looks at what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minift.errors import ConfigError

KERNELS = ("auto", "reference")
_chosen = "auto"


def fused() -> bool:
    """Whether fused kernels may run."""
    return _chosen == "auto"


@contextmanager
def using(kernels: str) -> Iterator[None]:
    """For the time of the block, in the whole process: autograd's threads ask, too."""
    global _chosen
    if kernels not in KERNELS:
        raise ConfigError(f"kernels: found {kernels}, allowed {', '.join(KERNELS)}")
    before, _chosen = _chosen, kernels
    try:
        yield
    finally:
        _chosen = before
