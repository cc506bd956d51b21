"""Packed sequences: they stand behind each other in a row, and each attends to itself alone.

    tokens    a a a b b c c c c        cu_seqlens  0 3 5 9

Everything in a transformer but attention works on single positions, so packed rows need no padding
there. Attention needs to know where sequences begin. On a GPU torch's kernel is told `cu_seqlens`
(varlen.py). On a CPU the sequences are unpacked into padded batches, one for each length bucket:

    (B T, C)  --unpack-->  n sequences of L positions, per bucket  --repack-->  (B T, C)

Either way is one copy of rows; its backward pass is the opposite copy. Padding stands on the right,
so no causal query sees it. In a bucket the shortest sequence has more than half of the longest
one's length (below SHORT, all lengths count as equal): a long sequence among short ones costs its
own square and no other.

The readable twin is one mask over the whole packed row (`dense_mask` in model/attention_mask.py),
which costs the square of all sequences together.
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

SHORT = 64  # positions: up to here the squares cost less than one more bucket

Bounds = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class PackedSequences:
    """Where the sequences of packed rows are; field names as in flash-attention.

    Built by hand, without `bounds`, nothing that runs depends on where the sequences end: so the
    operations can be captured in a CUDA graph once, and replayed for other rows of the same size.
    """

    segments: Tensor  # (B, T): neighbours with equal ids belong to one sequence
    cu_seqlens: Tensor | None  # (n + 1,) int32: 0, then each sequence's end; padded with T at the
    # end where there are fewer sequences. None: several rows, or rows with padding
    max_seqlen: int  # no sequence is longer
    window: int | None = None  # a query attends to the last `window` keys up to itself; None: all
    bounds: Bounds | None = None  # of each sequence, the first of the B T positions and the length

    @classmethod
    def of(cls, segments: Tensor, keep: Tensor | None) -> PackedSequences:
        """Reads where the sequences of `segments` (B, T) are, which waits for the device.

        keep (B, T): False on padding, which belongs to no sequence.
        """
        starts, lengths = bounds = sequence_bounds(segments, keep)
        cu_seqlens = None
        if len(segments) == 1 and keep is None:
            ends = np.append(starts, segments.shape[1]).astype(np.int32)
            cu_seqlens = torch.from_numpy(ends).to(segments.device)
        return cls(segments, cu_seqlens, int(lengths.max(initial=0)), bounds=bounds)


class MoveRows(torch.autograd.Function):
    """Copies rows `source` of x (M, C) to rows `to` of a new (rows, C); all others are zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, to: Tensor, rows: int) -> Tensor:
        ctx.rows = len(x)
        ctx.save_for_backward(source, to)
        return x.new_zeros(rows, x.shape[1]).index_copy_(0, to, x.index_select(0, source))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        source, to = ctx.saved_tensors
        dx = g.new_zeros(ctx.rows, g.shape[1]).index_copy_(0, source, g.index_select(0, to))
        return dx, None, None, None


@dataclass(frozen=True)
class Bucket:
    """Sequences of similar length, longest first, as one padded batch."""

    sequences: int
    length: int  # of the longest
    real: Tensor  # (n, L): False on the padding


class LengthBuckets:
    """How packed sequences are unpacked into padded batches, and repacked."""

    def __init__(self, packed: PackedSequences):
        assert packed.bounds is not None
        self.shape, device = packed.segments.shape, packed.segments.device
        starts, lengths = packed.bounds
        order = np.argsort(-lengths, kind="stable")
        starts, lengths = starts[order], lengths[order]
        self.buckets: list[Bucket] = []
        none = np.zeros(0, np.int64)
        padded, source, rows, first = [none], [none], 0, 0
        while first < len(lengths):
            longest = int(lengths[first])
            similar = 2 * np.maximum(lengths[first:], SHORT) > longest
            count = len(similar) if similar.all() else int(np.argmin(similar))
            part = slice(first, first + count)
            real = np.arange(longest) < lengths[part, None]  # (n, L)
            padded.append(rows + np.flatnonzero(real))
            source.append((starts[part, None] + np.arange(longest))[real])
            self.buckets.append(Bucket(count, longest, torch.from_numpy(real).to(device)))
            rows += count * longest
            first += count
        self.rows = rows  # of all buckets together
        # Real position i of the buckets is row padded[i] there, and position source[i] of B T.
        self.padded = torch.from_numpy(np.concatenate(padded)).to(device)
        self.source = torch.from_numpy(np.concatenate(source)).to(device)

    def unpack(self, x: Tensor) -> list[Tensor]:
        """(B, H, T, E) -> (n, H, L, E) of every bucket, zero on the padding."""
        H, E = x.shape[1], x.shape[3]
        flat = x.transpose(1, 2).reshape(-1, H * E)  # (B T, H E)
        moved = MoveRows.apply(flat, self.source, self.padded, self.rows)
        parts = moved.split([bucket.sequences * bucket.length for bucket in self.buckets])
        return [
            part.view(bucket.sequences, bucket.length, H, E).transpose(1, 2)
            for part, bucket in zip(parts, self.buckets, strict=True)
        ]

    def repack(self, parts: Sequence[Tensor]) -> Tensor:
        """(n, H, L, E) of every bucket -> (B, H, T, E), zero where no sequence is."""
        H, E = parts[0].shape[1], parts[0].shape[3]
        flat = [part.transpose(1, 2).reshape(-1, H * E) for part in parts]
        whole = flat[0] if len(flat) == 1 else torch.cat(flat)
        B, T = self.shape
        back: Tensor = MoveRows.apply(whole, self.padded, self.source, B * T)
        return back.view(B, T, H, E).transpose(1, 2)


def sequence_bounds(segments: Tensor, keep: Tensor | None) -> Bounds:
    """The first position (of B T) and the length of each sequence.

    A sequence is a run of equal `segments` (B, T); where keep (B, T) is False there is none.
    """
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
