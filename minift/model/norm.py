"""The two normalizations, over the last dimension, in float32 or better."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minift.kernels.norm.dispatch import rms_norm
from minift.model.config import ModelConfig


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + weight). Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4."""

    def __init__(self, dim: int, eps: float, offset: float = 0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim,), 1.0 - offset))
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps, self.offset)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * weight + bias. Ba et al. 2016, arXiv:1607.06450, eq. 4."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def make_norm(config: ModelConfig, dim: int | None = None) -> RMSNorm | LayerNorm:
    """A norm of the model's kind, over `dim` channels (default: the model's width)."""
    width = config.dim if dim is None else dim
    if config.norm == "rms":
        return RMSNorm(width, config.norm_eps, config.norm_offset)
    return LayerNorm(width, config.norm_eps)
