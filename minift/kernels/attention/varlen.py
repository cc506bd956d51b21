"""Texts behind each other in a row whose layout is on the device alone: a row of fixed shape.

    tokens    a a a b b c c c c        ends  0 3 5 9 9 9

Where packed.py asks the CPU how long each text is, and cuts the row accordingly, nothing here
depends on a length: the same operations serve every row with as many positions and at most as many
texts, so that they can be captured once and replayed (train/cuda_graph.py). torch's own kernel for
such rows, where it runs: flash attention over `ends` (Dao 2023, arXiv:2307.08691), which a text
costs its own square. Elsewhere one mask over the whole row, the readable twin (`look` in
model/sight.py).

Where the kernel runs it takes ordinary packed rows, too (`Texts.of`): a GPU's libraries look for a
way anew for every shape that they have not met, and bundles have another one in every step.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minift.kernels.attention import packed

WIDEST = 256  # channels of a head that the kernel takes, in eights


@dataclass(frozen=True)
class Texts:
    """Where each text of one row stands, on its device."""

    segments: Tensor  # (1, T) which text a position is of: 0, 1, 2, ...
    ends: Tensor  # (n + 1,) int32: 0, where each text ends, and T again where there are fewer
    longest: int  # no text is longer
    window: int | None = None  # of the positions up to itself, how many each sees; None: all

    @classmethod
    def of(cls, segments: Tensor) -> Texts:
        """A row of the ordinary kind (1, T): asks it where its texts end, which waits for it."""
        starts, lengths = packed.texts(segments, None)
        ends = torch.tensor([*starts, segments.shape[1]], dtype=torch.int32)
        return cls(segments, ends.to(segments.device), int(lengths.max()))


@functools.cache
def words() -> frozenset[str]:
    """What this torch's kernel can be told; nothing where there is no such kernel."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def installed() -> bool:
    return {"window_size", "scale"} <= words()


def suits(dtype: torch.dtype, device: torch.device, head_dim: int) -> bool:
    """Whether torch's kernel takes such heads."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= WIDEST
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and installed()
    )


def attention(q: Tensor, k: Tensor, v: Tensor, texts: Texts, scale: float | None = None) -> Tensor:
    """q (1, H, T, E), k and v (1, K, T, E) -> (1, H, T, E): causal, each text blind to the others.

    Where it suits.
    """
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (T, H or K, E)
    left = -1 if texts.window is None else texts.window - 1  # the kernel does not count itself
    # Before torch 2.12 it takes grouped heads unasked.
    grouped: dict[str, Any] = {}
    if "enable_gqa" in words():
        grouped["enable_gqa"] = q.shape[1] != k.shape[1]
    y = varlen_attn(
        q, k, v, texts.ends, texts.ends, texts.longest, texts.longest,
        scale=scale, window_size=(left, 0), **grouped,
    )  # fmt: skip
    assert isinstance(y, Tensor)
    return y.transpose(0, 1)[None]
