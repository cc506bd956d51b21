"""LoRA: a frozen weight plus a trained product of two thin matrices.

    y = x Wᵀ + s (D(x) Aᵀ) Bᵀ        A (R, in) random · B (out, R) zero · s = alpha / R

Hu et al. 2021, arXiv:2106.09685, section 4.1. With `rslora`, s = alpha / sqrt(R), which keeps the
size of the change steady as the rank grows (Kalajdzievski 2023, arXiv:2312.03732). B starts at
zero, so step 0 is exactly the base. A starts as torch's Linear does: uniform within 1/sqrt(in), as
in the authors' code (the paper says Gaussian).

Trainable: R (in + out) a matrix. Merging: W + s B A.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.kernels.lora.reference import lora_linear
from minift.model.transformer import Transformer
from minift.peft.attach import hang, members


@dataclass(frozen=True)
class LoRA:
    """Which linears change, and by how thin a product."""

    rank: int = field(default=8, metadata={"help": "rank of the change"})
    alpha: float = field(default=16.0, metadata={"help": "the change is scaled by alpha / rank"})
    dropout: float = field(default=0.0, metadata={"help": "share of a change's inputs dropped"})
    rslora: bool = field(default=False, metadata={"help": "scale by alpha / sqrt(rank) instead"})
    targets: tuple[str, ...] = field(
        default=("all",),
        metadata={"help": "attention, mlp, all, or names among q k v o gate up down"},
    )

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise ConfigError(f"rank: found {self.rank}, allowed a whole number from 1")
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"alpha: found {self.alpha}, allowed a number above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: found {self.dropout}, allowed 0 or more and below 1")
        if not self.targets:
            raise ConfigError(
                "targets: found none, allowed attention, mlp, all, or names of linears"
            )

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class Change(nn.Module):
    """What hangs on one linear."""

    def __init__(self, linear: nn.Linear, config: LoRA, generator: torch.Generator):
        super().__init__()
        self.config = config
        # float32 even on a bf16 base: an AdamW step is smaller than bf16 can add to a weight.
        dtype = torch.float64 if linear.weight.dtype == torch.float64 else torch.float32
        bound = linear.in_features**-0.5
        A = torch.empty(config.rank, linear.in_features, dtype=torch.float32)
        A.uniform_(-bound, bound, generator=generator)
        device = linear.weight.device
        self.A = nn.Parameter(A.to(device, dtype))
        self.B = nn.Parameter(
            torch.zeros(linear.out_features, config.rank, device=device, dtype=dtype)
        )

    def forward(self, linear: nn.Linear, x: Tensor) -> Tensor:
        drop = self.config.dropout if self.training else 0.0
        return lora_linear(x, linear.weight, linear.bias, self.A, self.B, self.config.scale, drop)

    def merged(self, linear: nn.Linear) -> Tensor:
        """W + s B A in the change's own precision, rounded once to the base's."""
        delta = self.config.scale * (self.B @ self.A)  # (out, in)
        return (linear.weight.to(delta.dtype) + delta).to(linear.weight.dtype)


def attach(model: Transformer, config: LoRA, seed: int = 0) -> Transformer:
    """Hang a change on every target. The same seed gives the same A."""
    generator = torch.Generator().manual_seed(seed)
    targets = list(members(model, config.targets))
    for path, linear in targets:
        most = min(linear.in_features, linear.out_features)
        if config.rank > most:
            raise ConfigError(
                f"rank: found {config.rank}, allowed at most {most}, the size of {path}"
            )
    for path, linear in targets:
        hang(model, path, Change(linear, config, generator))
    return model


def count(model: Transformer, config: LoRA) -> int:
    """Trainable numbers, in closed form."""
    shapes = [(w.in_features, w.out_features) for _, w in members(model, config.targets)]
    return sum(config.rank * (i + o) for i, o in shapes)
