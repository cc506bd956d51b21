"""Attention of packed sequences on a GPU: torch's varlen kernel, told where they end.

    tokens    a a a b b c c c c        cu_seqlens  0 3 5 9 9 9

This is flash attention over `cu_seqlens` (Dao 2023, arXiv:2307.08691): a sequence costs its own
square. packed.py instead asks the CPU how long each sequence is, and cuts the row accordingly. Here
nothing that the CPU does depends on a length: the same operations serve every row with as many
positions and at most as many sequences, so they can be captured once and replayed
(train/captured.py). Ordinary packed rows take this kernel, too: a GPU's libraries search for an
algorithm for every new shape, and buckets have new shapes in every step.

The readable twin is one mask over the whole row (`dense_mask` in model/attention_mask.py).
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from minift.kernels.attention.packed import PackedSequences

WIDEST = 256  # channels of a head that the kernel takes, in multiples of eight


@functools.cache
def parameters() -> frozenset[str]:
    """The parameters of this torch's kernel; none where there is no such kernel."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen_attn).parameters)


def installed() -> bool:
    return {"window_size", "scale"} <= parameters()


def suits(dtype: torch.dtype, device: torch.device, head_dim: int) -> bool:
    """True if torch's kernel takes such heads."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim % 8 == 0
        and head_dim <= WIDEST
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and installed()
    )


def attention(
    q: Tensor, k: Tensor, v: Tensor, packed: PackedSequences, scale: float | None = None
) -> Tensor:
    """q (1, H, T, E), k and v (1, K, T, E) -> (1, H, T, E): causal, within each sequence.

    Only where `suits` says so.
    """
    from torch.nn.attention.varlen import varlen_attn

    assert packed.cu_seqlens is not None
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (T, H or K, E)
    left = -1 if packed.window is None else packed.window - 1  # the query's own key comes on top
    # Before torch 2.12 the kernel takes grouped heads without being told.
    grouped: dict[str, Any] = {}
    if "enable_gqa" in parameters():
        grouped["enable_gqa"] = q.shape[1] != k.shape[1]
    y = varlen_attn(
        q, k, v, packed.cu_seqlens, packed.cu_seqlens, packed.max_seqlen, packed.max_seqlen,
        scale=scale, window_size=(left, 0), **grouped,
    )  # fmt: skip
    assert isinstance(y, Tensor)
    return y.transpose(0, 1)[None]
