"""The key/value cache: every layer's keys and values so far, written in place.

Memory is reserved once for `capacity` columns: 2 · layers · K · E numbers per column and row.
Columns are filled from the left. For rows padded on the left, `keep` says which columns are real,
so that positions and masks are the same as without padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minift.errors import ConfigError
from minift.model.config import ModelConfig

Pair = tuple[Tensor, Tensor]  # keys and values


class KVCache:
    """Keys are stored as attention reads them: after rotation by their positions.

    On a CPU, bf16 and float16 models have a float32 cache: attention computes its scores in
    float32, and would convert every column again for every token.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        # On a CPU the columns of a channel of k are contiguous in memory, as the matrix product
        # reads them; a GPU's attention needs contiguous channels, as in v.
        self.transposed = torch.device(device).type == "cpu"
        dtype = torch.float32 if self.transposed and dtype.itemsize < 4 else dtype
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.k = self.empty_keys(shape)
        self.keep = torch.ones(batch, capacity, dtype=torch.bool, device=device)
        self.rows = torch.arange(batch)  # the row of the first call that each row was
        self.length = 0
        self.counted = torch.zeros(batch, 1, dtype=torch.long, device=device)  # real so far
        self.padded = False
        self.opened: tuple[int, int] | None = None  # the columns that `layers` are views for
        self.layers: list[tuple[Pair, Pair]] = []

    def empty_keys(self, shape: tuple[int, ...]) -> Tensor:
        """Uninitialized keys (..., S, E), in the cache's memory layout."""
        if not self.transposed:
            return self.v.new_empty(shape)
        return self.v.new_empty((*shape[:-2], shape[-1], shape[-2])).mT

    def enlarge(self, rows: int, columns: int) -> None:
        """Reserve memory for so many, and keep what is stored."""
        layers, B, K, S, E = self.v.shape
        shape = (layers, rows, K, columns, E)
        k, v = self.empty_keys(shape), self.v.new_empty(shape)
        k[:, :B, :, :S], v[:, :B, :, :S] = self.k, self.v
        self.k, self.v = k, v

    def views(self) -> list[Pair]:
        """Each layer's keys and values (B, K, capacity, E)."""
        return [(self.k[layer], self.v[layer]) for layer in range(self.k.shape[0])]

    def mark(self, keep: Tensor | None, columns: int) -> tuple[Tensor | None, Tensor]:
        """Note which of the next columns are real; -> keep (B, S) or None, real so far (B, 1)."""
        stop = self.length + columns
        if stop > self.keep.shape[1]:
            raise ConfigError(
                f"cache: {stop} columns asked of a cache that was reserved for {self.keep.shape[1]}"
            )
        if keep is not None:
            self.keep[:, self.length : stop] = keep
            self.padded = True
        counted = self.counted
        self.counted = counted + (columns if keep is None else keep.sum(1, keepdim=True))
        return (self.keep[:, :stop] if self.padded else None), counted

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, E) after the columns so far; -> all keys and values (B, K, S, E)."""
        T = k.shape[2]
        if torch.is_grad_enabled():  # autograd refuses writes to one of several views made at once
            stop, filled = self.length + T, (self.k[layer], self.v[layer])
            for whole, new in zip(filled, (k, v), strict=True):
                whole.narrow(2, self.length, T).copy_(new)
            return filled[0].narrow(2, 0, stop), filled[1].narrow(2, 0, stop)
        if self.opened != (self.length, T):
            self.open(T)
        room, filled = self.layers[layer]
        room[0].copy_(k)
        room[1].copy_(v)
        return filled

    def open(self, columns: int) -> None:
        """Make each layer's views: the columns to write next, and all columns to read then.

        For all layers in one call: for single tokens, views cost as much as the writes.
        """
        self.opened, stop = (self.length, columns), self.length + columns
        room, filled = (
            zip(self.k[..., a:stop, :].unbind(), self.v[..., a:stop, :].unbind(), strict=True)
            for a in (self.length, 0)
        )
        self.layers = list(zip(room, filled, strict=True))

    def advance(self, columns: int) -> None:
        self.length += columns

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in this order; a row may be taken more than once."""
        self.keep, self.counted = self.keep[rows], self.counted[rows]
        self.rows = self.rows[rows.cpu()]
        self.move(rows)

    def move(self, rows: Tensor) -> None:
        """Move the filled columns of these rows to the front; the reserved memory stays."""
        stay = torch.arange(len(rows), device=rows.device)
        first = int((rows == stay).long().cumprod(0).sum())  # rows before it stay where they are
        if len(rows) > self.k.shape[1]:
            self.enlarge(len(rows), self.k.shape[3])
        for pair in self.views():
            for whole in pair:  # one at a time: indexing copies the rows first
                filled = whole[:, :, : self.length]
                filled[first : len(rows)] = filled[rows[first:]]
        self.k, self.v = self.k[:, : len(rows)], self.v[:, : len(rows)]
        self.opened = None

    def reserve(self, columns: int) -> None:
        """Reserve more columns."""
        B, S = self.keep.shape
        self.enlarge(self.k.shape[1], S + columns)
        self.keep = torch.cat((self.keep, self.keep.new_ones(B, columns)), dim=1)
        self.opened = None
