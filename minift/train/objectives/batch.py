"""Rows of ids as tensors: one batch and one way to pad, for every objective over tokens.

padded   B rows side by side, filled up on the right to the longest
packed   all rows behind each other in one, as sequences that do not see each other
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from minift.data.batches import micro_batches, packed_batches

Row = tuple[list[int], list[int]]  # ids, and a mask: 1 at each token that is a target
Encoded = TypeVar("Encoded")
WINDOW = 512  # held-out rows encoded at a time
GRAIN = 32  # tokens: a packed batch has a multiple of them
FILL = 0.9  # "auto" packs where less of the padded tensors than this would be text


@dataclass(frozen=True)
class Batch:
    """What the model reads and what it should answer: a token at each position, or a label a row.

    A causal model that is padded on the right needs no attention mask: no real position looks at
    padding.
    """

    tokens: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64: the token after each position; or (B,): the label of each row
    num_tokens: int  # without padding
    loss_mask: Tensor | None = None  # (B, T) bool: True where the prediction counts; None: labels
    mask: Tensor | None = None  # (B, T) bool: True where a token is real; None: not needed
    segments: Tensor | None = None  # (1, T) int64, packed: the sequence of each token
    token_types: Tensor | None = None  # (B, T) int64; None where all are 0

    @property
    def num_targets(self) -> int:
        return len(self.targets) if self.loss_mask is None else int(self.loss_mask.sum())


class Window(Generic[Encoded]):
    """Encoded training rows: those of the window at hand, and any other when it is asked for."""

    def __init__(self, encode: Callable[[int], Encoded]):
        self.encode = encode
        self.rows: dict[int, Encoded] = {}

    def load(self, indices: Sequence[int]) -> None:
        """Encode these rows and keep them, in place of those kept before."""
        self.rows = {i: self.encode(i) for i in indices}

    def __getitem__(self, i: int) -> Encoded:
        return self.rows[i] if i in self.rows else self.encode(i)


def pad(rows: Sequence[Sequence[int]], dtype: torch.dtype = torch.long) -> Tensor:
    """Rows of numbers side by side, filled up with 0 on the right: (B, T)."""
    out = torch.zeros(len(rows), max(map(len, rows)), dtype=dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=dtype)
    return out


def padded_batch(rows: Sequence[Row]) -> Batch:
    """Right-padded tensors, shifted by one: position t reads token t and predicts t + 1."""
    return Batch(
        pad([ids[:-1] for ids, _ in rows]),
        pad([ids[1:] for ids, _ in rows]),
        sum(len(ids) - 1 for ids, _ in rows),
        pad([mask[1:] for _, mask in rows], torch.bool),
    )


def packed_batch(rows: Sequence[Row], max_tokens: int) -> Batch:
    """One row of all, shifted by one within each, and filled up to a multiple of GRAIN.

    Padding tokens form their own sequences, none longer than the longest row: they are masked from
    every other sequence and from the loss. A CPU's library makes a program for every new shape of a
    product, half a megabyte each, and keeps them: with every total of a few hundred tokens they
    cost more than the padding (benchmarks/LOG.md).
    """
    lengths = [len(ids) - 1 for ids, _ in rows]
    num_tokens = sum(lengths)
    spare = max(0, min(-num_tokens % GRAIN, max_tokens - num_tokens))
    fill, longest = [0] * spare, max(1, *lengths)
    sizes = [*lengths, *(min(longest, spare - k) for k in range(0, spare, longest))]
    loss_mask = [bit == 1 for _, mask in rows for bit in mask[1:]] + [False] * spare
    return Batch(
        torch.tensor([i for ids, _ in rows for i in ids[:-1]] + fill)[None],
        torch.tensor([i for ids, _ in rows for i in ids[1:]] + fill)[None],
        num_tokens,
        torch.tensor(loss_mask)[None],
        segments=torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[None],
    )


def token_batches(rows: Sequence[Row], max_tokens: int, pack: str = "off") -> list[Batch]:
    """The rows in batches of at most `max_tokens`, padding counted.

    `pack`: "on" packs, "off" pads, "auto" packs where padding would be over a tenth.
    """
    lengths = [len(ids) - 1 for ids, _ in rows]
    if pack == "auto":  # a row without a neighbour gains nothing
        area = len(rows) * max(lengths, default=0)
        pack = "on" if len(rows) > 1 and sum(lengths) < FILL * area else "off"
    if pack == "on":
        parts = packed_batches(lengths, max_tokens)
        return [packed_batch([rows[i] for i in part], max_tokens) for part in parts]
    return [padded_batch([rows[i] for i in part]) for part in split_rows(lengths, max_tokens)]


def split_rows(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Numbers of rows for batches of at most `max_tokens` with padding, longest first."""
    rows = range(len(lengths))
    cut = micro_batches(rows, lengths, max(1, len(lengths)), max_tokens)
    return [part.tolist() for part in cut]


def windows(count: int) -> Iterator[range]:
    """0 to count - 1 in parts of WINDOW."""
    return (range(k, min(k + WINDOW, count)) for k in range(0, count, WINDOW))
