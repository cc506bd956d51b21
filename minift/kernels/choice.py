"""Which kernels run: the fused ones, or the readable twins that they are held to.

with using("auto"): ...        the fused form wherever it applies, in Triton on a GPU, in torch's
                               own operations elsewhere: what everything starts with
with using("triton"): ...      Triton, or an error; on a CPU in Triton's interpreter only
with using("torch"): ...       the fused form without Triton
with using("reference"): ...   every operation by its reference.py

Each operation has one dispatch.py, which asks here and then looks at what it is given. Nothing here
imports triton, or torch.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from minift.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

KERNELS = ("auto", "triton", "torch", "reference")
INSTALL = "pip install 'minift[triton]'"
_chosen = "auto"


def fused() -> bool:
    """Whether fused kernels may run."""
    return _chosen != "reference"


def triton(x: Tensor) -> bool:
    """Whether the fused form of an operation on x is the one in Triton.

    By itself on a GPU, but for float64, which is for checks. Where a GPU has no Triton, one line
    on stderr says so.
    """
    if _chosen == "triton":
        if not x.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
            raise ConfigError(
                f"kernels: found triton on {x.device}, allowed on a GPU, or with TRITON_INTERPRET=1"
            )
        return True
    if _chosen != "auto" or not x.is_cuda or x.dtype.itemsize > 4:
        return False
    if not installed():
        tell()
        return False
    return True


def word(x: Tensor) -> str:
    """What runs on tensors like x, for a screen."""
    if not fused():
        return "readable"
    return "fused Triton" if triton(x) else "fused"


@functools.cache
def installed() -> bool:
    """Whether there is a Triton to import."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def tell() -> None:
    """Once a process."""
    text = f"kernels: no triton, so the GPU runs torch's own operations, slower: {INSTALL}"
    print(text, file=sys.stderr)


@contextmanager
def using(kernels: str) -> Iterator[None]:
    """For the time of the block, in the whole process: autograd's threads ask, too."""
    global _chosen
    if kernels not in KERNELS:
        raise ConfigError(f"kernels: found {kernels}, allowed {', '.join(KERNELS)}")
    if kernels == "triton" and not installed():
        raise ConfigError(f"kernels: found triton, which is not installed: {INSTALL}")
    before, _chosen = _chosen, kernels
    try:
        yield
    finally:
        _chosen = before
