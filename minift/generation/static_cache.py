"""A forward pass of fixed shape for one token: on a GPU, one CUDA graph replayed for every token.

A token launches hundreds of small kernels, which a GPU runs faster than a CPU can launch them one
by one. A captured graph launches all of them at once, but every shape, address and number that the
CPU chose stays as it was captured. So whatever grows from token to token must not be the CPU's:

  - the cache has all its columns from the beginning, and a mask on the device says which of them
    are filled;
  - the index of the next column is on the device, too. The model sees the current token in the last
    column. So that this is always the same one, keys are written twice: to their own column, which
    counts from the next token on, and to a spare column behind all others, which counts now;
  - finished rows stay in the batch until they are half of it; then the others move together and the
    pass is captured again.

The cost is to read columns that are not filled. Without the capture the pass runs anywhere, call by
call: it is its own readable twin, and the tests compare it with the growing cache.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minift.errors import ConfigError
from minift.generation.cache import KVCache
from minift.generation.step import step_of
from minift.model.transformer import Transformer
from minift.runtime import recorded


class StaticCache:
    """The keys and values of a filled KVCache, in tensors that never grow.

    `length`, which the forward pass reads, is the number of columns before the last one.
    """

    def __init__(self, cache: KVCache):
        held = cache.keep.shape[1]
        shape = (*cache.k.shape[:3], held + 1, cache.k.shape[4])
        # Zeros: a masked column's weight is 0, and 0 times uninitialized memory could be NaN.
        self.k, self.v = (torch.zeros(shape, dtype=x.dtype, device=x.device)
                          for x in (cache.k, cache.v))  # fmt: skip
        self.k[..., : cache.length, :] = cache.k[..., : cache.length, :]
        self.v[..., : cache.length, :] = cache.v[..., : cache.length, :]
        self.keep = torch.zeros(shape[1], held + 1, dtype=torch.bool, device=cache.k.device)
        self.keep[:, : cache.length] = cache.keep[:, : cache.length]
        self.keep[:, -1] = True
        self.counted = cache.counted.clone()  # (B, 1) real so far
        self.at = torch.tensor([cache.length], device=cache.k.device)  # the next column
        self.rows, self.length = cache.rows, held

    def mark(self, keep: Tensor | None, columns: int) -> tuple[Tensor, Tensor]:
        assert keep is None, "every row has a token"
        assert columns == 1, "one token at a time"
        return self.keep, self.counted

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, 1, E) twice; -> all keys and values (B, K, S, E)."""
        keys, values = self.k[layer], self.v[layer]
        for whole, new in ((keys, k), (values, v)):
            whole.index_copy_(2, self.at, new.to(whole.dtype))
            whole[:, :, -1:].copy_(new)
        return keys, values

    def advance(self, columns: int) -> None:
        self.keep.index_fill_(1, self.at, True)
        self.counted.add_(columns)
        self.at.add_(columns)

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, in new tensors."""
        self.k, self.v = self.k[:, rows], self.v[:, rows]
        self.keep, self.counted = self.keep[rows], self.counted[rows]
        self.rows = self.rows[rows.cpu()]

    def state(self) -> list[Tensor]:
        """The tensors that `advance` changes."""
        return [self.keep, self.counted, self.at]


class StaticPass:
    """The next hidden states from a static cache, by a CUDA graph: tokens (B,) -> (B, D)."""

    def __init__(self, model: Transformer, cache: KVCache):
        self.model, self.cache = model, StaticCache(cache)
        self.live = torch.arange(len(cache.counted), device=cache.k.device)
        self.tokens = torch.zeros(len(self.live), 1, dtype=torch.long, device=cache.k.device)
        self.replay: Callable[[], Tensor] | None = None

    def __call__(self, tokens: Tensor) -> Tensor:
        self.tokens[self.live, 0] = tokens
        if self.replay is None:
            self.replay = self.captured()
        return self.replay()[self.live]

    def plain(self) -> Tensor:
        return self.model(self.tokens, cache=self.cache, hidden_only=True)[:, -1]

    def select(self, rows: Tensor) -> None:
        """Keep only these of the rows so far."""
        self.live = self.live[rows]
        if 2 * len(self.live) <= len(self.tokens):
            self.cache.select(self.live)
            self.tokens = self.tokens[self.live]
            self.live = torch.arange(len(self.tokens), device=self.live.device)
            self.replay = None

    def captured(self) -> Callable[[], Tensor]:
        """`plain` as a CUDA graph."""
        state = self.cache.state()
        before = [x.clone() for x in state]

        def warm() -> None:
            self.plain()
            for x, was in zip(state, before, strict=True):
                x.copy_(was)

        return recorded(self.plain, warm)


class DynamicPass:
    """The next hidden states from a growing cache; on a CPU by step.py, if possible."""

    def __init__(self, model: Transformer, cache: KVCache):
        self.model, self.cache, self.step = model, cache, step_of(model)

    def __call__(self, tokens: Tensor) -> Tensor:
        if self.step is not None:
            return self.step(tokens[:, None], self.cache)[:, -1]
        return self.model(tokens[:, None], cache=self.cache, hidden_only=True)[:, -1]

    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)


def check(model: Transformer) -> None:
    """Raises ConfigError if a pass of fixed shape cannot be captured."""
    device, scaling = model.embed.weight.device, model.config.rope_scaling
    if device.type != "cuda":
        raise ConfigError(f"graph: found a model on {device}, allowed on a GPU")
    if scaling is not None and scaling.kind == "dynamic":
        raise ConfigError(
            "graph: found RoPE whose angles follow the length (dynamic), allowed a fixed kind"
        )
