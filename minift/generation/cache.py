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

Pair = tuple[Tensor, Tensor]  # keys and values


class KVCache:
    """Keys are stored as they are looked at: turned by their positions already.

    On a CPU bf16 and float16 models keep float32 columns: attention computes its scores in float32,
    and would convert every column again for every token.
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
        # On a CPU a channel's columns of k stand beside each other in memory, as a product with
        # them reads them; a GPU's attention wants the channels there, as in v.
        self.turned = torch.device(device).type == "cpu"
        dtype = torch.float32 if self.turned and dtype.itemsize < 4 else dtype
        self.v = torch.empty(shape, dtype=dtype, device=device)
        self.k = self.room(shape)
        self.keep = torch.ones(batch, capacity, dtype=torch.bool, device=device)
        self.rows = torch.arange(batch)  # which row of the first call each row now is
        self.length = 0
        self.counted = torch.zeros(batch, 1, dtype=torch.long, device=device)  # real so far
        self.padded = False
        self.opened: tuple[int, int] | None = None  # the columns that `layers` is cut out for
        self.layers: list[tuple[Pair, Pair]] = []

    def room(self, shape: tuple[int, ...]) -> Tensor:
        """Unwritten keys (..., S, E), laid out as they are kept."""
        if not self.turned:
            return self.v.new_empty(shape)
        return self.v.new_empty((*shape[:-2], shape[-1], shape[-2])).mT

    def enlarge(self, rows: int, columns: int) -> None:
        """Room for so many; what is there stays where it is."""
        layers, B, K, S, E = self.v.shape
        shape = (layers, rows, K, columns, E)
        k, v = self.room(shape), self.v.new_empty(shape)
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
        """Store (B, K, T, E) after what is there; -> all keys and values (B, K, S, E)."""
        T = k.shape[2]
        if torch.is_grad_enabled():  # which does not let views of several at once be written
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
        """Cut out what each layer will write next, and what will then be there to read.

        Of all layers in one call: for single tokens views cost as much as what is done with them.
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
        """Go on with these rows only, in this order; a row may be taken more than once."""
        self.keep, self.counted = self.keep[rows], self.counted[rows]
        self.rows = self.rows[rows.cpu()]
        self.move(rows)

    def move(self, rows: Tensor) -> None:
        """Columns that hold something, to where they are needed; reserved room stays."""
        stay = torch.arange(len(rows), device=rows.device)
        first = int((rows == stay).long().cumprod(0).sum())  # rows before it stay where they are
        if len(rows) > self.k.shape[1]:
            self.enlarge(len(rows), self.k.shape[3])
        for pair in self.views():
            for whole in pair:  # one at a time: what moves is copied out first
                filled = whole[:, :, : self.length]
                filled[first : len(rows)] = filled[rows[first:]]
        self.k, self.v = self.k[:, : len(rows)], self.v[:, : len(rows)]
        self.opened = None

    def reserve(self, columns: int) -> None:
        """Make room for more columns than were planned."""
        B, S = self.keep.shape
        self.enlarge(self.k.shape[1], S + columns)
        self.keep = torch.cat((self.keep, self.keep.new_ones(B, columns)), dim=1)
        self.opened = None
