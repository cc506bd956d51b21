"""Prompt tuning: learned embeddings before every text, and nothing else.

    x = [P₁ ... P_n ; embed(tokens)]

Lester et al. 2021, arXiv:2104.08691, section 2. Only P (n, D) is trained. It starts

    random    uniform within 1/2 (section 3.2; much larger than the embeddings of small models)
    vocab     as the embeddings of tokens drawn from the vocabulary, the best of the paper at small
              sizes (drawn from the whole vocabulary here, from its 5,000 commonest words there)
    text      as the embeddings of a text's tokens, repeated or cut to n; class labels are such a
              text (section 3.2, "class label initialization")

Learning rates far above those of other methods (the paper: 0.3, with Adafactor) and thousands of
steps are usual, since nothing but the input changes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.model.transformer import Transformer
from minift.peft.about import About
from minift.peft.module_copy import trainable_options
from minift.peft.names import as_tuples
from minift.peft.slots import get_or_create_adapters
from minift.peft.soft_prompt import SoftPrompt, check_context

INITS = ("random", "vocab", "text")
RATE = 3e-2
ABOUT = About(
    equation="x = [P₁ ... P_n ; embed(tokens)]",
    paper="arXiv:2104.08691",
    changes="the input",
    formula="n D",
    merges=False,
    merging="its tokens are input",
    use="many tasks share one untouched model, and there is time for thousands of steps",
)


@dataclass(frozen=True)
class Prompt:
    """How many virtual tokens, and how they start."""

    prompt_tokens: int = field(default=20, metadata={"help": "virtual tokens before every text"})
    prompt_init: str = field(default="vocab", metadata={"help": "random, vocab or text"})
    prompt_ids: tuple[int, ...] = field(
        default=(), metadata={"help": "with text: the ids of its tokens, comma-separated"}
    )

    def __post_init__(self) -> None:
        as_tuples(self, ids=("prompt_ids",))
        if type(self.prompt_tokens) is not int or self.prompt_tokens < 1:
            raise ConfigError(
                f"prompt_tokens: found {self.prompt_tokens}, allowed a whole number from 1"
            )
        if self.prompt_init not in INITS:
            raise ConfigError(f"prompt_init: found {self.prompt_init}, allowed {', '.join(INITS)}")
        if (self.prompt_init == "text") != bool(self.prompt_ids):
            raise ConfigError("prompt_ids: go with prompt_init text, and it with them")

    def __str__(self) -> str:
        return f"prompt of {self.prompt_tokens} tokens"


class PromptEmbedding(SoftPrompt):
    def __init__(self, vectors: Tensor):
        super().__init__()
        self.prompt = nn.Parameter(vectors)  # (P, D)

    def vectors(self) -> Tensor:
        return self.prompt


def attach(model: Transformer, config: Prompt, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, weight = config.prompt_tokens, model.embed.weight
    check_context(model, n, 1)
    if config.prompt_init == "random":
        start = torch.rand(n, model.config.dim, generator=generator) - 0.5
        start = start.to(**trainable_options(model.embed))
    else:
        if config.prompt_init == "vocab":
            ids = torch.randint(model.config.vocab, (n,), generator=generator)
        else:
            if not 0 <= min(config.prompt_ids) <= max(config.prompt_ids) < model.config.vocab:
                most = model.config.vocab - 1
                raise ConfigError(f"prompt_ids: found ids outside of 0 to {most:,}")
            repeated = config.prompt_ids * (n // len(config.prompt_ids) + 1)
            ids = torch.tensor(repeated[:n])
        with torch.no_grad():
            start = model.embed_tokens(ids.to(weight.device))
            start = start.to(**trainable_options(model.embed)).clone()
    get_or_create_adapters(model).parts[name] = PromptEmbedding(start)


def count(model: Transformer, config: Prompt) -> int:
    """Trainable numbers, in closed form."""
    return config.prompt_tokens * model.config.dim
