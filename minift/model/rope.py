"""Rotary position embedding: a position rotates each pair of a head's channels by an angle.

    angle(t, i) = t / base^(2i/E)        (x_i, x_{i+E/2}) is rotated by angle(t, i)

Su et al. 2021, arXiv:2104.09864, section 3.4.2, in the half-split layout of the Llama checkpoints
(channel i is paired with i + E/2). The dot product of two rotated heads depends on the distance of
their positions only. Where not all channels are rotated, the first E of them are.

Deviation: angles are computed in float64 and rounded once, where the reference implementation
multiplies in float32; at position 8,000 that product alone is off by 5e-4.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache

import torch
from torch import Tensor

from minift.model.config import ModelConfig, RopeScaling


@lru_cache(maxsize=64)
def frequencies(config: ModelConfig, *, local: bool = False, length: int = 0) -> Tensor:
    """Radians per position for each channel pair, float64 (E/2,).

    `local` layers may have a base of their own, never scaled. `length` is that of the longest row,
    which only `dynamic` scaling needs. The tensor is cached: do not change it.
    """
    own_base = local and config.local_rope_base is not None
    base = config.local_rope_base if own_base else config.rope_base
    assert base is not None
    scaling = None if own_base else config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        base *= dynamic_growth(scaling, config.rotated, length)
    half = torch.arange(0, config.rotated, 2, dtype=torch.float64) / config.rotated
    freq = base**-half
    return freq if scaling is None else stretch(freq, scaling, base)


@cache
def frequencies_on(device: torch.device, config: ModelConfig, local: bool) -> Tensor:
    """`frequencies` on a device, copied there once: no later call waits for a copy.

    Never freed, since a captured CUDA graph reads them at this address.
    """
    return frequencies(config, local=local).to(device)


def dynamic_growth(scaling: RopeScaling, dims: int, length: int) -> float:
    """The factor of a dynamic base, so that the longest wave spans `length` positions."""
    over = max(length, scaling.original_context) / scaling.original_context
    return (scaling.factor * over - (scaling.factor - 1)) ** (dims / (dims - 2))


def stretch(freq: Tensor, scaling: RopeScaling, base: float) -> Tensor:
    """The frequencies (E/2,) after scaling."""
    match scaling.kind:
        case "linear":
            return freq / scaling.factor
        case "factors":
            return freq / torch.tensor(scaling.factors, dtype=torch.float64)
        case "llama3":
            # Slow the long waves, keep the short ones, blend between.
            turns = scaling.original_context * freq / (2 * math.pi)  # over the old context
            keep = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
        case "yarn":
            # The same by channel: the one that makes `high` turns is the last to be kept whole.
            first, last = (
                len(freq) * math.log(scaling.original_context / (2 * math.pi * turns))
                / math.log(base)
                for turns in (scaling.high, scaling.low)
            )  # fmt: skip
            first, last = max(math.floor(first), 0), min(math.ceil(last), 2 * len(freq) - 1)
            channel = torch.arange(len(freq), dtype=torch.float64)
            keep = 1 - ((channel - first) / max(last - first, 1e-3)).clamp(0, 1)
        case _:  # dynamic: its base has changed already
            return freq
    return freq * (keep + (1 - keep) / scaling.factor)


def rotary_embedding(
    config: ModelConfig, positions: Tensor, dtype: torch.dtype, local: bool
) -> tuple[Tensor, Tensor] | None:
    """cos and sin of a model's `local` or full layers; None where positions are learned."""
    if config.positions != "rope":
        return None
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic":
        freq = frequencies(config, local=local, length=int(positions.max()) + 1)
    else:
        freq = frequencies_on(positions.device, config, local)
    own_base = local and config.local_rope_base is not None  # which is never scaled
    factor = 1.0 if scaling is None or own_base else scaling.attention_factor
    return rotary_table(freq, positions, dtype, factor)


def rotary_table(
    freq: Tensor, positions: Tensor, dtype: torch.dtype, attention_factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """cos and sin times `attention_factor`, each (B, 1, T, E/2), for positions (B, T)."""
    angle = positions[:, None, :, None].double() * freq.to(positions.device)
    return (angle.cos() * attention_factor).to(dtype), (angle.sin() * attention_factor).to(dtype)
