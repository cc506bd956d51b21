"""The key/value cache: every layer's keys and values so far, written in place.

Memory is reserved once for `capacity` columns: 2 · layers · K · E numbers a column and row.
Columns are filled from the left; a row that is padded on the left keeps a note of which of its
columns are real, so that positions and masks come out as without padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minift.errors import ConfigError
from minift.model.config import ModelConfig


class KVCache:
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
        self.k = torch.empty(shape, dtype=dtype, device=device)
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.keep = torch.ones(batch, capacity, dtype=torch.bool, device=device)
        self.rows = torch.arange(batch)  # which row of the first call each row now is
        self.length = 0
        self.padded = False

    def mark(self, keep: Tensor | None, columns: int) -> tuple[Tensor | None, Tensor]:
        """Note which of the next columns are real; -> keep (B, S) or None, real so far (B, 1)."""
        stop = self.length + columns
        if stop > self.keep.shape[1]:
            raise ConfigError(
                f"cache: {stop} columns asked of a cache that was reserved for {self.keep.shape[1]}"
            )
        counted = self.keep[:, : self.length].sum(1, keepdim=True)  # (B, 1)
        if keep is not None:
            self.keep[:, self.length : stop] = keep
            self.padded = True
        return (self.keep[:, :stop] if self.padded else None), counted

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, E) after what is there; -> all keys and values (B, K, S, E)."""
        stop = self.length + k.shape[2]
        self.k[layer, :, :, self.length : stop] = k
        self.v[layer, :, :, self.length : stop] = v
        return self.k[layer, :, :, :stop], self.v[layer, :, :, :stop]

    def advance(self, columns: int) -> None:
        self.length += columns

    def select(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.k, self.v, self.keep = self.k[:, rows], self.v[:, rows], self.keep[rows]
        self.rows = self.rows[rows.cpu()]

    def reserve(self, columns: int) -> None:
        """Make room for more columns than were planned."""
        B = self.keep.shape[0]
        more = (*self.k.shape[:3], columns, self.k.shape[4])
        self.k = torch.cat((self.k, self.k.new_empty(more)), dim=3)
        self.v = torch.cat((self.v, self.v.new_empty(more)), dim=3)
        self.keep = torch.cat((self.keep, self.keep.new_ones(B, columns)), dim=1)
