"""Rotary position embedding: a position turns each pair of a head's channels by an angle.

    angle(t, i) = t / base^(2i/E)        (x_i, x_{i+E/2}) turns by angle(t, i)

Su et al. 2021, arXiv:2104.09864, section 3.4.2, in the half-split layout of the Llama checkpoints
(channel i is paired with i + E/2). The dot product of two turned heads depends on the distance of
their positions only.

Deviation: angles are computed in float64 and rounded once, where the reference implementation
multiplies in float32; at position 8,000 that product alone is off by 5e-4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minift.model.config import ModelConfig, RopeScaling


def frequencies(config: ModelConfig) -> Tensor:
    """Radians per position for each channel pair, float64 (E/2,)."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    freq = config.rope_base**-half
    return freq if config.rope_scaling is None else stretch(freq, config.rope_scaling)


def stretch(freq: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3's scaling: slow the long waves, keep the short ones, blend between."""
    turns = scaling.original_context * freq / (2 * math.pi)  # full turns over the old context
    keep = ((turns - scaling.low) / (scaling.high - scaling.low)).clamp(0, 1)
    return freq * (keep + (1 - keep) / scaling.factor)


def rotary_table(freq: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of every angle: positions (B, T) -> two (B, 1, T, E/2), shared by all layers."""
    angle = positions[:, None, :, None].double() * freq.to(positions.device)  # (B, 1, T, E/2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn every channel pair of `x` (B, H, T, E) by its position's angle."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)  # (B, H, T, E/2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
