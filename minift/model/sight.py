"""Where queries may look, and where positions are counted from: masks of one forward pass.

`look` is the readable form of all of it: padding, packed texts, a cache, virtual keys before a
text, windows. What is faster answers parts of it elsewhere: kernels/attention/packed.py and
varlen.py for packed texts, `causal` for a kernel that needs no mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from minift.kernels.attention.varlen import Texts


@dataclass(frozen=True)
class Sight:
    """Where queries may look."""

    visible: Tensor | None  # (B or 1, 1, T, S), True where a query may look; None: see `causal`
    causal: bool  # no mask needed beyond "not after me"
    texts: Texts | None = None  # nor beyond "in my text", for a kernel that knows them


@dataclass(frozen=True)
class View:
    """Where one kind of layer looks, and by which angles its heads turn."""

    rotary: tuple[Tensor, Tensor] | None
    sights: tuple[Sight, ...]  # one, or of packed rows one for each bundle


def right_padded(keep: Tensor) -> bool:
    """Whether no real position of (B, T) comes after a padded one."""
    return not bool((keep[:, 1:] & ~keep[:, :-1]).any())


def count(
    keep: Tensor | None, segments: Tensor | None, B: int, T: int, device: torch.device
) -> Tensor:
    """Positions (B or 1, T): real tokens so far in the row, or in its segment; padding counts 0."""
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


def look(
    columns: Tensor | None,
    segments: Tensor | None,
    T: int,
    before: int,
    P: int,
    causal: bool,
    window: int | None,
    device: torch.device,
) -> Tensor:
    """(B or 1, 1, T, P + before + T): True where a query may look.

    It looks at real keys of its own segment, where `causal` at none after itself, and at `past`;
    with a window at the last `window` real ones only, itself and those of `past` counted. A padded
    query sees itself, so that no row of the softmax is empty (NaN in the backward pass).
    """
    S = before + T
    column, row = torch.arange(S, device=device), torch.arange(before, S, device=device)[:, None]
    visible = (column <= row if causal else torch.ones(T, S, dtype=torch.bool, device=device))[None]
    if columns is not None:
        visible = (visible & columns[:, None, :]) | (column == row)
    if segments is not None:
        visible = visible & (segments[:, :, None] == segments[:, None, :])
    if P:
        visible = torch.cat((visible.new_ones(visible.shape[0], T, P), visible), dim=2)
    if window is not None:
        # Neither padding between virtual tokens and a text nor an earlier text of a packed row
        # must push them out of sight.
        if segments is not None:
            place = count(columns, segments, len(segments), T, device)  # (B, S)
        else:
            place = column[None] if columns is None else columns.cumsum(1) - 1  # (1 or B, S)
        behind = torch.arange(-P, 0, device=device).expand(place.shape[0], P)
        near = place[:, before:, None] - torch.cat((behind, place), dim=1)[:, None, :] < window
        visible = visible & near  # (B or 1, T, P + S)
    return visible[:, None]  # (B or 1, 1, T, P + S)
