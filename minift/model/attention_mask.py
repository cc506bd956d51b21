"""Attention masks, positions and packed sequences of one forward pass.

`forward_context` turns what a caller gives (`mask`, `segments`, `cache`, `past`) into what the
layers need: positions, rotary angles, and for each kind of layer where its queries may attend.

`dense_mask` is the readable form of all of it: padding, packed sequences, a cache, keys of `past`,
sliding windows. Faster forms answer parts of it: `causal` for a kernel that needs no mask,
kernels/attention/varlen.py (GPU) and packed.py (CPU) for packed sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from minift.errors import ConfigError
from minift.kernels import choice
from minift.kernels.attention.packed import LengthBuckets, PackedSequences
from minift.kernels.attention.varlen import suits
from minift.model.config import ModelConfig
from minift.model.rope import rotary_embedding

Past = Sequence[tuple[Tensor, Tensor]]  # per layer: keys and values, each (1 or B, K, P, E)


class Cache(Protocol):
    """What the forward pass asks of a key/value cache (generation/cache.py has one)."""

    length: int  # columns already written

    def mark(self, keep: Tensor | None, columns: int) -> tuple[Tensor | None, Tensor]:
        """Note which of the next columns are real; -> keep (B, S) or None, real so far (B, 1)."""

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, E) after the columns so far; -> all keys and values (B, K, S, E)."""

    def advance(self, columns: int) -> None:
        """Count the columns just written as past."""


@dataclass(frozen=True)
class AttentionMask:
    """Where queries may attend, in one of three forms."""

    mask: Tensor | None  # (B or 1, 1, T, S), True where a query may attend; None: see `causal`
    causal: bool  # every query attends to all keys up to its own position
    packed: PackedSequences | None = None  # and, for a varlen kernel, to its own sequence only


@dataclass(frozen=True)
class LayerContext:
    """What layers of one kind (full attention, or a sliding window) share."""

    rotary: tuple[Tensor, Tensor] | None  # cos and sin (B or 1, 1, T, E/2)
    masks: tuple[AttentionMask, ...]  # one, or one for each length bucket


@dataclass(frozen=True)
class SelectedPositions:
    """The positions whose hidden states the last block computes.

    Its residual stream has these N positions only, (1, N, D). Keys and values are still computed
    for every position. Queries are scattered to their places in the batch, zero elsewhere, so that
    masks and rotary angles stay as they are.
    """

    stream: Tensor  # (B, T, D) the residual stream of every position
    indices: Tensor  # (N,) int64, which of the B T positions

    def gather(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (1, N, C)."""
        return x.flatten(0, 1).index_select(0, self.indices)[None]

    def scatter(self, x: Tensor) -> Tensor:
        """(1, N, C) -> (B, T, C), zero at positions that are not selected."""
        B, T, _ = self.stream.shape
        return x.new_zeros(B * T, x.shape[-1]).index_copy(0, self.indices, x[0]).view(B, T, -1)


@dataclass(frozen=True)
class ForwardContext:
    """What all layers of one forward pass share."""

    positions: Tensor  # (B, T)
    full: LayerContext
    local: LayerContext  # of the layers with a sliding window
    cache: Cache | None
    past: Past | None
    buckets: LengthBuckets | None  # how packed sequences are unpacked for attention
    max_position: int | None = None  # no position is larger; None: not known without asking
    selected: SelectedPositions | None = None  # set for the last block

    def layer(self, local: bool) -> LayerContext:
        return self.local if local else self.full


def selected_positions(selected: Tensor, B: int, T: int) -> Tensor:
    """Indices (N,) int64 into the B T positions, from those or from a bool mask (B, T)."""
    if selected.dtype == torch.bool and selected.shape == (B, T):
        return selected.flatten().nonzero()[:, 0]
    if selected.dtype == torch.int64 and selected.dim() == 1:
        return selected
    raise ConfigError(
        f"model: selected is {selected.dtype} {tuple(selected.shape)}, allowed bool {(B, T)} "
        "or int64 (N,)"
    )


def pack(segments: Tensor | PackedSequences, mask: Tensor | None) -> PackedSequences:
    """The sequences of `segments` (B, T), in whichever form a caller gives them."""
    if isinstance(segments, PackedSequences):
        return segments
    return PackedSequences.of(segments, None if mask is None else mask.bool())


def forward_context(
    config: ModelConfig,
    x: Tensor,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
    segments: Tensor | PackedSequences | None = None,
    past: Past | None = None,
    cache: Cache | None = None,
) -> ForwardContext:
    """Everything that follows from the arguments of `Transformer.forward`, for x (B, T, D)."""
    B, T, _ = x.shape
    if segments is not None and cache is not None:
        raise ConfigError("model: segments and a cache do not go together")
    if cache is not None and not config.causal:
        raise ConfigError(f"model: {config.family} attends both ways, which no cache can serve")
    if isinstance(segments, PackedSequences) and mask is not None:
        raise ConfigError("model: PackedSequences and a mask do not go together")
    keep = None if mask is None or bool(mask.all()) else mask.bool()  # (B, T)
    packed = None if segments is None else pack(segments, keep)
    P = 0 if past is None else past[0][0].shape[2]
    cached = cache.length if cache is not None else 0
    counted = torch.zeros(B, 1, dtype=torch.long, device=x.device)
    keys = keep  # (B, S): which keys are real
    if cache is not None:
        keys, counted = cache.mark(keep, T)
    elif config.causal and keep is not None and P == 0 and is_right_padded(keep):
        keys = None  # the causal mask hides the padding from every real query
    ids = None if packed is None else packed.segments  # (B, T)
    max_position = None
    if positions is None:
        positions = P + counted + count_positions(keep, ids, B, T, x.device)
        if packed is not None and packed.cu_seqlens is not None:
            max_position = P + packed.max_seqlen - 1
        elif P + cached + T <= config.context:  # else padding may still leave room
            max_position = P + cached + T - 1
    positions = positions.expand(B, T)
    buckets = None
    if packed is not None and packed.cu_seqlens is not None and takes_varlen(config, x, P):
        masks = [varlen_masks(config, packed)]
    elif packed is not None and packed.bounds is not None and choice.fused():
        buckets = LengthBuckets(packed)
        if not buckets.buckets:
            raise ConfigError("model: found segments and no position that is real")
        masks = [
            layer_masks(
                config, None if config.causal else bucket.real, None, bucket.length, 0, P, x.device
            )
            for bucket in buckets.buckets
        ]
    else:
        masks = [layer_masks(config, keys, ids, T, cached, P, x.device)]
    full_masks, local_masks = zip(*masks, strict=True)
    full = LayerContext(rotary_embedding(config, positions, x.dtype, False), full_masks)
    local = full
    if any(config.local):
        local = LayerContext(rotary_embedding(config, positions, x.dtype, True), local_masks)
    return ForwardContext(positions, full, local, cache, past, buckets, max_position)


def takes_varlen(config: ModelConfig, x: Tensor, P: int) -> bool:
    """True if torch's varlen kernel can compute the model's attention on x."""
    plain = config.causal and P == 0 and config.attention_softcap is None and choice.fused()
    return plain and suits(x.dtype, x.device, config.head_dim)


def varlen_masks(
    config: ModelConfig, packed: PackedSequences
) -> tuple[AttentionMask, AttentionMask]:
    """Like `layer_masks`, for the varlen kernel."""
    full = AttentionMask(None, True, packed)
    if not any(config.local) or config.window is None:
        return full, full
    return full, AttentionMask(None, True, replace(packed, window=config.window))


def layer_masks(
    config: ModelConfig,
    keys: Tensor | None,
    segments: Tensor | None,
    T: int,
    cached: int,
    P: int,
    device: torch.device,
) -> tuple[AttentionMask, AttentionMask]:
    """The masks of T queries, after P keys of `past` and `cached` columns: full, and local layers.

    A mask is built only where `causal` does not say it already.
    """
    full, local = None, None
    after_keys = config.causal and bool(P or (cached and T > 1))
    if keys is not None or segments is not None or after_keys:
        full = dense_mask(keys, segments, T, cached, P, config.causal, None, device)
    if any(config.local) and config.window is not None and P + cached + T > config.window:
        local = dense_mask(keys, segments, T, cached, P, config.causal, config.window, device)
    both = (full, full if local is None else local)
    first, second = (AttentionMask(m, m is None and T > 1 and config.causal) for m in both)
    return first, second


def is_right_padded(keep: Tensor) -> bool:
    """True if no real position of (B, T) comes after a padded one."""
    return not bool((keep[:, 1:] & ~keep[:, :-1]).any())


def count_positions(
    keep: Tensor | None, segments: Tensor | None, B: int, T: int, device: torch.device
) -> Tensor:
    """Positions (B or 1, T): the real tokens so far in the row, or in its segment; padding has the
    position of the token before it, or 0."""
    if keep is None and segments is None:
        return torch.arange(T, device=device)[None]
    real = torch.ones(B, T, dtype=torch.long, device=device) if keep is None else keep.long()
    seen = real.cumsum(1)  # (B, T)
    if segments is not None:
        first = torch.ones_like(segments, dtype=torch.bool)
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
        start = torch.where(first, seen - real, 0).cummax(1).values  # seen before my segment
        seen = seen - start
    return (seen - 1).clamp(min=0)


def dense_mask(
    keys: Tensor | None,
    segments: Tensor | None,
    T: int,
    cached: int,
    P: int,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> Tensor:
    """(B or 1, 1, T, P + cached + T): True where a query may attend.

    A query attends to the keys of `past` and to real keys (`keys` (B, cached + T)) of its own
    segment; where `causal`, to none after itself. A window counts the last `window` real keys: the
    query's own and those of `past` included. So a long sequence pushes `past` out of its window.
    A padded query attends to itself, so that no row of the softmax is empty (which would give NaN
    in the backward pass).
    """
    S = cached + T
    column, row = torch.arange(S, device=device), torch.arange(cached, S, device=device)[:, None]
    mask = (column <= row if causal else torch.ones(T, S, dtype=torch.bool, device=device))[None]
    if keys is not None:
        mask = (mask & keys[:, None, :]) | (column == row)
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    if P:
        mask = torch.cat((mask.new_ones(mask.shape[0], T, P), mask), dim=2)
    if window is not None:
        # Distances are counted in real tokens of the sequence: neither padding nor an earlier
        # sequence of the row moves the keys of `past` out of the window.
        if segments is not None:
            position = count_positions(keys, segments, len(segments), T, device)  # (B, S)
        else:
            position = column[None] if keys is None else keys.cumsum(1) - 1  # (1 or B, S)
        before = torch.arange(-P, 0, device=device).expand(position.shape[0], P)
        distance = position[:, cached:, None] - torch.cat((before, position), dim=1)[:, None, :]
        mask = mask & (distance < window)  # (B or 1, T, P + S)
    return mask[:, None]  # (B or 1, 1, T, P + S)
