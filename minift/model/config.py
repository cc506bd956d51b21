"""What a transformer is made of, as explicit fields, filled in by a model family."""

from __future__ import annotations

from dataclasses import dataclass

from minift.errors import ConfigError


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's stretching of the rotary frequencies (Llama 3.1 release, `rope_type: llama3`).

    Wavelengths above `original_context / low` are slowed by `factor`, those below
    `original_context / high` are kept, and the band between is interpolated.
    """

    factor: float
    low: float
    high: float
    original_context: int

    def __post_init__(self) -> None:
        if not (self.factor >= 1 and 0 < self.low < self.high and self.original_context > 0):
            raise ConfigError(
                f"rope scaling: found {self}, allowed factor >= 1, 0 < low < high and a context > 0"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of one model. Sizes are counts; `rope_base` is the paper's theta."""

    family: str  # the row of checkpoints/families.py that reads and writes it
    vocab: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    context: int
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied: bool = False  # the head is the embedding
    qkv_bias: bool = False
    out_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab", "dim", "layers", "heads", "kv_heads", "head_dim", "ff", "context")
        problems = [
            f"{name}: found {getattr(self, name)}, allowed a whole number from 1 to 2^31"
            for name in sizes
            if not 1 <= getattr(self, name) <= 2**31
        ]
        if not problems and self.heads % self.kv_heads:
            problems.append(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        if self.head_dim % 2:
            problems.append(f"head_dim: found {self.head_dim}, allowed an even number (RoPE)")
        if not 0 < self.norm_eps < 1:
            problems.append(f"norm_eps: found {self.norm_eps}, allowed above 0 and below 1")
        if not 1 <= self.rope_base < float("inf"):
            problems.append(f"rope_base: found {self.rope_base}, allowed 1 or more")
        if problems:
            raise ConfigError("model config: " + "; ".join(problems))
