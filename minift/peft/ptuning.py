"""P-tuning: virtual tokens that a small network makes out of learned vectors.

    E (n, D) learned · mlp   P = W₃ relu(W₂ relu(W₁ E))
                       lstm  P = W₂ relu(W₁ h), h = bi-LSTM(E)

Liu et al. 2021, arXiv:2103.10385, section 3.2; the two networks are those of PEFT, with their
biases. The network helps while training, because it ties the virtual tokens to each other; what is
saved for use is P alone, and the network beside it, so that training may go on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.model.transformer import Transformer
from minift.peft.about import About
from minift.peft.module_copy import trainable_options
from minift.peft.slots import get_or_create_adapters
from minift.peft.soft_prompt import SoftPrompt, check_context, init_uniform

ENCODERS = ("mlp", "lstm")
RATE = 1e-3
ABOUT = About(
    equation="E (n, D) learned · mlp   P = W₃ relu(W₂ relu(W₁ E))",
    paper="arXiv:2103.10385",
    changes="the input",
    formula="n D + mlp D h + h + h² + h + h D + D · n D + lstm's own + 4 h² + 2 h + 2 h D + D",
    merges=False,
    merging="its tokens are input",
    use="as prompt tuning, where that learns too slowly: the network ties its tokens together",
)


@dataclass(frozen=True)
class PTuning:
    """How many virtual tokens, and the network that makes them."""

    ptuning_tokens: int = field(default=20, metadata={"help": "virtual tokens before every text"})
    encoder: str = field(default="mlp", metadata={"help": "mlp or lstm: what makes the tokens"})
    encoder_hidden: int = field(default=128, metadata={"help": "its width"})
    encoder_layers: int = field(default=2, metadata={"help": "layers of the lstm"})

    def __post_init__(self) -> None:
        for name in ("ptuning_tokens", "encoder_hidden", "encoder_layers"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name}: found {value}, allowed a whole number from 1")
        if self.encoder not in ENCODERS:
            raise ConfigError(f"encoder: found {self.encoder}, allowed {', '.join(ENCODERS)}")

    def __str__(self) -> str:
        return f"P-tuning with {self.ptuning_tokens} tokens"


class PromptEncoder(SoftPrompt):
    """The network and what it reads; or, once `finish`ed, what it made."""

    def __init__(self, config: PTuning, dim: int, generator: torch.Generator):
        super().__init__()
        h = config.encoder_hidden
        self.prompt: nn.Parameter | None = None
        self.start: nn.Parameter | None
        self.start = nn.Parameter(torch.randn(config.ptuning_tokens, dim, generator=generator))
        self.lstm: nn.LSTM | None = None
        if config.encoder == "lstm":
            self.lstm = nn.LSTM(dim, h, config.encoder_layers, bidirectional=True, batch_first=True)
            self.layers = nn.Sequential(nn.Linear(2 * h, 2 * h), nn.ReLU(), nn.Linear(2 * h, dim))
        else:
            self.layers = nn.Sequential(
                nn.Linear(dim, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, dim)
            )
        init_uniform(self, generator)

    @property
    def derived(self) -> bool:
        """Whether the files hold something else than the parameters."""
        return self.prompt is None

    def vectors(self) -> Tensor:
        if self.prompt is not None:
            return self.prompt
        assert self.start is not None
        x = self.start[None]  # (1, P, D)
        if self.lstm is not None:
            x = self.lstm(x)[0]  # (1, P, 2 h)
        return self.layers(x)[0]  # (P, D)

    def finish(self, vectors: Tensor) -> None:
        """Keep the virtual tokens, let the network go."""
        self.prompt = nn.Parameter(vectors.clone())
        self.start, self.lstm, self.layers = None, None, nn.Sequential()


def attach(model: Transformer, config: PTuning, name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    check_context(model, config.ptuning_tokens, 1)
    part = PromptEncoder(config, model.config.dim, generator)
    get_or_create_adapters(model).parts[name] = part.to(**trainable_options(model.embed))


def count(model: Transformer, config: PTuning) -> int:
    """Trainable numbers, in closed form."""
    D, h = model.config.dim, config.encoder_hidden
    if config.encoder == "mlp":
        network = D * h + h + h * h + h + h * D + D
    else:  # four gates of two directions: their inputs, states and two biases
        inputs = [D] + [2 * h] * (config.encoder_layers - 1)
        network = sum(2 * 4 * h * (i + h + 2) for i in inputs)
        network += 2 * h * 2 * h + 2 * h + 2 * h * D + D
    return config.ptuning_tokens * D + network
