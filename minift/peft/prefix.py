"""Prefix tuning: learned keys and values that every layer's attention sees before the text.

    attention(q, [P_k ; k], [P_v ; v])        P_k, P_v (K, n, E) for each layer

Li & Liang 2021, arXiv:2101.00190, section 4.2. Texts take the positions after the n of the prefix;
the prefix's keys are not turned by rotary positions, they are learned where they stand.

    flat         the keys and values themselves are trained; as every layer has its own, this is
                 also the deep prompt of P-tuning v2 (Liu et al. 2022, arXiv:2110.07602, 3.2)
    prefix_mlp   [P] = W₂ tanh(W₁ E), with E (n, K E) (section 4.3): steadier at high learning
                 rates. What is saved for use is its result, and the network beside it, so that
                 training may go on

`prefix_init` vocab starts from the keys and values that tokens drawn from the vocabulary have in
the base (the paper takes words of the task, section 7.4); random from a normal distribution, as
PEFT does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.generation.cache import KVCache
from minift.model.attention_mask import Past, pack
from minift.model.transformer import Transformer
from minift.peft.about import About
from minift.peft.module_copy import trainable_options
from minift.peft.slots import get_or_create_adapters
from minift.peft.soft_prompt import check_context, init_uniform

INITS = ("random", "vocab")
RATE = 1e-2
ABOUT = About(
    equation="attention(q, [P_k ; k], [P_v ; v])   P_k, P_v (K, n, E) for each layer",
    paper="arXiv:2101.00190",
    changes="what attention sees",
    formula="n 2 L K E flat · with the network n K E + K E h + h + h 2 L K E + 2 L K E",
    merges=False,
    merging="its keys and values are no weights",
    use="many tasks share one untouched model, and prompt tuning learns too little",
)


@dataclass(frozen=True)
class Prefix:
    """How long a prefix, and how it is made."""

    prefix_tokens: int = field(default=20, metadata={"help": "virtual positions of every layer"})
    prefix_mlp: int = field(
        default=0, metadata={"help": "width of a network that makes the prefix; 0: none"}
    )
    prefix_init: str = field(default="random", metadata={"help": "random or vocab"})

    def __post_init__(self) -> None:
        if type(self.prefix_tokens) is not int or self.prefix_tokens < 1:
            raise ConfigError(
                f"prefix_tokens: found {self.prefix_tokens}, allowed a whole number from 1"
            )
        if type(self.prefix_mlp) is not int or self.prefix_mlp < 0:
            raise ConfigError(f"prefix_mlp: found {self.prefix_mlp}, allowed a whole number from 0")
        if self.prefix_init not in INITS:
            raise ConfigError(f"prefix_init: found {self.prefix_init}, allowed {', '.join(INITS)}")
        if self.prefix_mlp and self.prefix_init == "vocab":
            raise ConfigError("prefix_init: found vocab with prefix_mlp, allowed random")

    def __str__(self) -> str:
        return f"prefix of {self.prefix_tokens} positions"


class PrefixEncoder(nn.Module):
    """Asked before every forward pass for the model's `past`."""

    NOT_MERGEABLE = "its keys and values are no weights"

    def __init__(self, config: Prefix, layers: int, heads: int, width: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.heads, self.width = heads, width
        numbers, n = 2 * layers * heads * width, config.prefix_tokens
        self.network: nn.Sequential | None = None
        if config.prefix_mlp:
            h = config.prefix_mlp
            self.network = nn.Sequential(
                nn.Linear(heads * width, h), nn.Tanh(), nn.Linear(h, numbers)
            )
            init_uniform(self, generator)
            numbers = heads * width
        self.start = nn.Parameter(torch.randn(n, numbers, generator=generator))

    @property
    def derived(self) -> bool:
        """Whether the files hold something else than the parameters."""
        return self.network is not None

    @property
    def positions(self) -> int:
        """Positions that it takes of the context."""
        return len(self.start)

    def flat(self) -> Tensor:
        """(P, 2 L K E): for each layer its keys, then its values."""
        return self.start if self.network is None else self.network(self.start)

    def past(self) -> Past:
        P = self.start.shape[0]
        each = self.flat().view(P, -1, self.heads, self.width).permute(1, 2, 0, 3)  # (2 L, K, P, E)
        return [(each[i][None], each[i + 1][None]) for i in range(0, len(each), 2)]

    def before(self, model: Transformer, given: dict[str, Any]) -> dict[str, Any]:
        if given.get("past") is not None:
            raise ConfigError("model: past and a prefix do not go together")
        tensor = given["tokens"] if given.get("tokens") is not None else given["embeds"]
        T, segments = tensor.shape[1], given.get("segments")
        if segments is not None:  # each text has the context to itself
            T = pack(segments, given.get("mask")).max_seqlen
        check_context(model, self.start.shape[0], T)
        return given | {"past": self.past()}

    def after(self, out: Tensor) -> None:
        return None

    def finish(self, flat: Tensor) -> None:
        """Keep the prefix, let the network go."""
        self.start, self.network = nn.Parameter(flat.clone()), None


def attach(model: Transformer, config: Prefix, name: str, seed: int) -> None:
    shape, weight = model.config, model.embed.weight
    check_context(model, config.prefix_tokens, 1)
    part = PrefixEncoder(config, shape.layers, shape.kv_heads, shape.head_dim, seed)
    part = part.to(**trainable_options(model.embed))
    if config.prefix_init == "vocab":
        if not shape.causal:
            raise ConfigError(f"prefix_init: found vocab, allowed random for {shape.family}")
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(shape.vocab, (1, config.prefix_tokens), generator=generator)
        part.finish(seen(model, ids.to(weight.device)).to(part.start))
    get_or_create_adapters(model).parts[name] = part


@torch.no_grad()
def seen(model: Transformer, ids: Tensor) -> Tensor:
    """What attention keeps of these tokens (1, P), as a flat prefix (P, 2 L K E)."""
    weight = model.embed.weight
    cache = KVCache(model.config, 1, ids.shape[1], dtype=weight.dtype, device=weight.device)
    model(ids, cache=cache, hidden_only=True)
    both = torch.stack((cache.k[:, 0], cache.v[:, 0]), dim=1)  # (L, 2, K, P, E)
    return both.permute(3, 0, 1, 2, 4).flatten(1)


def count(model: Transformer, config: Prefix) -> int:
    """Trainable numbers, in closed form."""
    shape, n, h = model.config, config.prefix_tokens, config.prefix_mlp
    KE = shape.kv_heads * shape.head_dim
    numbers = 2 * shape.layers * KE
    return n * KE + KE * h + h + h * numbers + numbers if h else n * numbers
