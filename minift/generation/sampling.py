"""From logits to the next token: repetition penalty, temperature, top-k, top-p.

In this order, which is that of the reference implementation: the penalty divides positive and
multiplies negative logits of tokens already seen (Keskar et al. 2019, arXiv:1909.05858, section
4.1), the temperature divides, top-k keeps the k best, top-p the smallest set whose probability
reaches p (Holtzman et al. 2020, arXiv:1904.09751, section 3.1). Temperature 0 is the argmax.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from minift.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    temperature: float = field(default=0.0, metadata={"help": "0 takes the best token every time"})
    top_k: int = field(default=0, metadata={"help": "choose among the k best; 0: all"})
    top_p: float = field(default=1.0, metadata={"help": "choose among the best that reach p"})
    repetition_penalty: float = field(default=1.0, metadata={"help": "above 1: less repetition"})
    sampling_seed: int = field(default=0, metadata={"help": "seed of the draws"})

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature < float("inf"):
            problems.append(f"temperature: found {self.temperature}, allowed 0 or more")
        if self.top_k < 0:
            problems.append(f"top_k: found {self.top_k}, allowed 0 (off) or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p: found {self.top_p}, allowed above 0 and at most 1")
        if not 0 < self.repetition_penalty < float("inf"):
            problems.append(f"repetition_penalty: found {self.repetition_penalty}, allowed above 0")
        if problems:
            raise ConfigError("; ".join(problems))


def adjust(logits: Tensor, seen: Tensor, config: Sampling) -> Tensor:
    """Logits (B, V) after every rule; seen (B, V) is True for tokens already in the row."""
    if config.repetition_penalty != 1:
        penalty = config.repetition_penalty
        logits = torch.where(
            seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits
        )
    if config.temperature > 0:
        logits = logits / config.temperature
    if config.top_k and config.top_k < logits.shape[-1]:
        worst = logits.topk(config.top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < worst, float("-inf"))
    if config.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability  # of the better ones; the best always stays
        ordered = ordered.masked_fill(before >= config.top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter(-1, order, ordered)
    return logits


def draw(logits: Tensor, config: Sampling, generator: torch.Generator) -> Tensor:
    """The next token of each row: adjusted logits (B, V) -> (B,)."""
    best, at = logits.max(-1)  # a NaN is the maximum too; -inf is no choice
    if not bool(best.isfinite().all()):
        raise ConfigError("sampling: the model's logits are not finite; check its weights")
    if config.temperature == 0:
        return at  # the first of equals
    probability = logits.softmax(-1)
    return torch.multinomial(probability, 1, generator=generator)[:, 0]
