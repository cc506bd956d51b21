"""What stands on the last hidden states, beside the plain matrix of a language model.

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
    """One vector a row, and from it a score for each label: (B, T, D) -> (B, C)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.out = nn.Linear(config.dim, len(config.labels), bias=config.label_bias)
        self.last = config.pool == "last"
        self.act = ACTIVATIONS[config.pool_act]

    def forward(self, hidden: Tensor, mask: Tensor | None, pooler: nn.Linear | None) -> Tensor:
        x = pooled(hidden, mask, last=self.last)  # (B, D)
        if pooler is not None:
            x = self.act(pooler(x.to(pooler.weight.dtype)))
        return self.out(x.to(self.out.weight.dtype))  # a new head is float32 on any body


def pooled(hidden: Tensor, mask: Tensor | None, *, last: bool) -> Tensor:
    """The first or last real position of every row: (B, T, D), mask (B, T) -> (B, D)."""
    B, T, _ = hidden.shape
    if mask is None:
        return hidden[:, -1 if last else 0]
    place = torch.arange(T, device=hidden.device)
    real = mask.bool()
    at = torch.where(real, place, -1).amax(1) if last else torch.where(real, place, T).amin(1)
    return hidden[torch.arange(B, device=hidden.device), at.clamp(0, T - 1)]
