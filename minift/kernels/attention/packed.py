"""Packed rows: texts stand behind each other in a row, and each attends to itself alone.

All of a transformer but attention works on single positions, so texts need no padding there. For
attention they are laid below each other and padded on the right, texts of like length together:

    (B T, C)  --lay-->  n texts of L positions, for each bundle  --join-->  (B T, C)

Either way is one copy of rows, which the backward pass makes the other way round. A causal text of
a bundle never sees the padding behind it. In a bundle the shortest text has more than half of the
longest one's length (short ones count as SHORT), so that a long text among short ones costs its own
square and no other.

The readable twin is one mask over the whole packed row (`look` in model/sight.py), whose cost
is the square of all texts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORT = 64  # texts below this are alike: their squares cost less than one more bundle


class Move(torch.autograd.Function):
    """Rows `taken` of x (M, C) become the rows `to` of (rows, C), whose other rows are zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taken: Tensor, to: Tensor, rows: int) -> Tensor:
        ctx.rows = len(x)
        ctx.save_for_backward(taken, to)
        return x.new_zeros(rows, x.shape[1]).index_copy_(0, to, x.index_select(0, taken))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        taken, to = ctx.saved_tensors
        dx = g.new_zeros(ctx.rows, g.shape[1]).index_copy_(0, taken, g.index_select(0, to))
        return dx, None, None, None


@dataclass(frozen=True)
class Bundle:
    """Texts of like length, longest first."""

    texts: int
    length: int  # of the longest
    real: Tensor  # (n, L): False on the padding


class Packing:
    """Where the texts of a batch stand: a run of equal `segments` (B, T) is a text.

    keep (B, T): False on positions that belong to none. There what `join` gives is zero.
    """

    def __init__(self, segments: Tensor, keep: Tensor | None):
        self.shape, device = segments.shape, segments.device
        starts, lengths = texts(segments, keep)
        order = np.argsort(-lengths, kind="stable")
        starts, lengths = starts[order], lengths[order]
        self.bundles: list[Bundle] = []
        none = np.zeros(0, np.int64)
        slots, taken, rows, first = [none], [none], 0, 0
        while first < len(lengths):
            longest = int(lengths[first])
            alike = 2 * np.maximum(lengths[first:], SHORT) > longest
            count = len(alike) if alike.all() else int(np.argmin(alike))
            part = slice(first, first + count)
            real = np.arange(longest) < lengths[part, None]  # (n, L)
            slots.append(rows + np.flatnonzero(real))
            taken.append((starts[part, None] + np.arange(longest))[real])
            self.bundles.append(Bundle(count, longest, torch.from_numpy(real).to(device)))
            rows += count * longest
            first += count
        self.rows = rows
        self.slots = torch.from_numpy(np.concatenate(slots)).to(device)
        self.taken = torch.from_numpy(np.concatenate(taken)).to(device)

    def lay(self, x: Tensor) -> list[Tensor]:
        """(B, H, T, E) -> (n, H, L, E) of every bundle, zero on the padding."""
        H, E = x.shape[1], x.shape[3]
        flat = x.transpose(1, 2).reshape(-1, H * E)
        moved = Move.apply(flat, self.taken, self.slots, self.rows)
        parts = moved.split([bundle.texts * bundle.length for bundle in self.bundles])
        return [
            part.view(bundle.texts, bundle.length, H, E).transpose(1, 2)
            for part, bundle in zip(parts, self.bundles, strict=True)
        ]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """(n, H, L, E) of every bundle -> (B, H, T, E)."""
        H, E = parts[0].shape[1], parts[0].shape[3]
        flat = [part.transpose(1, 2).reshape(-1, H * E) for part in parts]
        whole = flat[0] if len(flat) == 1 else torch.cat(flat)
        B, T = self.shape
        back: Tensor = Move.apply(whole, self.slots, self.taken, B * T)
        return back.view(B, T, H, E).transpose(1, 2)


def texts(segments: Tensor, keep: Tensor | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each text the first position (of B T) and the length."""
    ids = segments.cpu().numpy()
    begins = np.ones(ids.shape, bool)
    begins[:, 1:] = ids[:, 1:] != ids[:, :-1]
    real = np.ones(ids.size, bool)
    if keep is not None:
        mask = keep.cpu().numpy()
        begins[:, 1:] |= mask[:, 1:] != mask[:, :-1]
        real = mask.reshape(-1)
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=ids.size)
    return starts[real[starts]], lengths[real[starts]]
