"""Prompt tuning: learned embeddings before every text, and nothing else.

    x = [P₁ ... P_n ; embed(tokens)]

Lester et al. 2021, arXiv:2104.08691, section 2. Only P (n, D) is trained. It starts

    random    uniform within 1/2 (section 3.2; much larger than the embeddings of small models)
    vocab     as the embeddings of tokens drawn from the vocabulary, the best of the paper at small
              sizes (drawn from the whole vocabulary here, from its 5,000 commonest words there)
    text      as the embeddings of a text's tokens, repeated or cut to n; class labels are such a
              text (section 3.2, "class label initialization")

Touches: the input.
Trainable: n D. It cannot be merged: its tokens are input. Rates far above
other methods' (the paper: 0.3, with Adafactor) and thousands of steps are usual, since nothing but
the input moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.interop.peft_format import Problems, Whole, whole
from minift.model.transformer import Transformer
from minift.peft.lora import precise
from minift.peft.names import tuples_of
from minift.peft.slots import made
from minift.peft.soft_prompt import Virtual, room

INITS = ("random", "vocab", "text")
RATE = 3e-2


@dataclass(frozen=True)
class Prompt:
    """How many virtual tokens, and how they start."""

    prompt_tokens: int = field(default=20, metadata={"help": "virtual tokens before every text"})
    prompt_init: str = field(default="vocab", metadata={"help": "random, vocab or text"})
    prompt_ids: tuple[int, ...] = field(
        default=(), metadata={"help": "with text: the ids of its tokens, comma-separated"}
    )

    def __post_init__(self) -> None:
        tuples_of(self, ids=("prompt_ids",))
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


class Part(Virtual):
    def __init__(self, vectors: Tensor):
        super().__init__()
        self.prompt = nn.Parameter(vectors)  # (P, D)

    def vectors(self) -> Tensor:
        return self.prompt


def attach(model: Transformer, config: Prompt, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, weight = config.prompt_tokens, model.embed.weight
    room(model, n, 1)
    if config.prompt_init == "random":
        start = torch.rand(n, model.config.dim, generator=generator) - 0.5
        start = start.to(weight.device, precise(weight))
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
            start = model.embed_tokens(ids.to(weight.device)).to(precise(weight)).clone()
    made(model).parts[name] = Part(start)


def count(model: Transformer, config: Prompt) -> int:
    """Trainable numbers, in closed form."""
    return config.prompt_tokens * model.config.dim


# ---- PEFT's files --------------------------------------------------------------------------------

# The sizes that every soft prompt's configuration repeats.
SIZES = ("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers",
         "num_transformer_submodules")  # fmt: skip


def sizes(model: Transformer, tokens: int) -> dict[str, Any]:
    config = model.config
    return {
        "num_virtual_tokens": tokens,
        "token_dim": config.dim,
        "num_attention_heads": config.heads,
        "num_layers": config.layers,
        "num_transformer_submodules": 1,
    }


def read(data: Mapping[str, Any], problems: Problems) -> Prompt:
    return Prompt(whole(data, "num_virtual_tokens", problems), prompt_init="random")


def write(config: Prompt, model: Transformer) -> dict[str, Any]:
    return sizes(model, config.prompt_tokens) | {"prompt_tuning_init": "RANDOM"}


def to_file(model: Transformer, part: nn.Module) -> dict[str, Tensor]:
    assert isinstance(part, Virtual)
    return {"prompt_embeddings": part.vectors()}


def shapes(model: Transformer, config: Prompt) -> dict[str, tuple[int, ...]]:
    return {"prompt_embeddings": (config.prompt_tokens, model.config.dim)}


@torch.no_grad()
def fill(part: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    assert isinstance(part, Part)
    part.prompt.copy_(tensors["prompt_embeddings"])


FILE = Whole(
    "PROMPT_TUNING",
    read,
    write,
    to_file,
    shapes,
    fill,
    lambda config: config,
    told=("num_virtual_tokens", "token_dim"),
    options=(*SIZES, "prompt_tuning_init"),
    off={"num_transformer_submodules": (1,)},
    neutral=("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
)
