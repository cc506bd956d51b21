"""Heads on the last hidden states, beside the plain matrix of a language model.

    masked words   decoder(norm(act(dense(h)))) + bias        Devlin et al. 2019, arXiv:1810.04805
    labels         out(act(pooler(h_p))), or out(h_p)         h_p: the first or last real position

A label head with one output is a scalar head: a reward, or a regression.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minift.kernels.activations import ACTIVATIONS
from minift.model.config import ModelConfig
from minift.model.norm import LayerNorm


class MaskedLMHead(nn.Module):
    """Hidden states (..., D) -> scores of the vocabulary (..., V)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)
        self.norm = LayerNorm(config.dim, config.norm_eps)
        self.decoder = nn.Linear(config.dim, config.vocab)
        self.act = ACTIVATIONS[config.act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.decoder(self.norm(self.act(self.dense(hidden))))


class LabelHead(nn.Module):
    """From one position's hidden state a score for each label: (B, D) -> (B, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.out = nn.Linear(config.dim, len(config.labels), bias=config.label_bias)
        self.last = config.pool == "last"
        self.act = ACTIVATIONS[config.pool_act]

    def select(self, mask: Tensor | None, B: int, T: int, device: torch.device) -> Tensor:
        """(B,) int64: which of the B T positions it reads, the first or last real one of a row."""
        place = torch.arange(T, device=device)
        real = torch.ones(B, T, dtype=torch.bool, device=device) if mask is None else mask.bool()
        if self.last:
            at = torch.where(real, place, -1).amax(1)
        else:
            at = torch.where(real, place, T).amin(1)
        return torch.arange(B, device=device) * T + at.clamp(0, T - 1)

    def forward(self, x: Tensor, pooler: nn.Linear | None) -> Tensor:
        if pooler is not None:
            x = self.act(pooler(x.to(pooler.weight.dtype)))
        return self.out(x.to(self.out.weight.dtype))  # a new head is float32 on any body
