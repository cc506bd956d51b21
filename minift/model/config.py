"""The configuration of a transformer: explicit fields, set by its model family."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from minift.errors import ConfigError

CHOICES = {
    "norm": ("rms", "layer"),
    "norm_at": ("pre", "post", "sandwich", "parallel"),
    "act": ("silu", "gelu", "gelu_tanh", "relu"),
    "positions": ("rope", "learned"),
    "head": ("none", "lm", "mlm", "label"),
    "pool": ("first", "last"),
    "pool_act": ("tanh", "relu"),
}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary angles are scaled for contexts longer than those of the first training.

    linear    every angle / factor (Chen et al. 2023, arXiv:2306.15595)
    dynamic   the base grows with the length of the row, once it exceeds `original_context`
    llama3    waves above original_context / low are slowed by `factor`, those below
              original_context / high are kept, the band between is blended (Llama 3.1)
    yarn      the same idea by turns over the original context, `high` and `low` (the paper's beta),
              and cos and sin times `attention_factor` (Peng et al. 2023, arXiv:2309.00071,
              section 3.2 to 3.4)
    factors   one divisor a frequency, as GGUF files of Llama 3 and longrope configs list them
    """

    kind: str
    factor: float = 1.0
    low: float = 1.0
    high: float = 1.0
    original_context: int = 1
    attention_factor: float = 1.0
    factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        known = ("linear", "dynamic", "llama3", "yarn", "factors")
        problems = []
        if self.kind not in known:
            problems.append(f"kind {self.kind}, allowed {', '.join(known)}")
        if not 1 <= self.factor < inf:
            problems.append(f"factor {self.factor}, allowed 1 or more")
        if not 0 < self.low <= self.high < inf or (self.kind == "llama3" and self.low == self.high):
            problems.append(f"low {self.low} and high {self.high}, allowed 0 < low < high")
        if not 1 <= self.original_context <= 2**31:
            problems.append(f"original context {self.original_context}, allowed 1 or more")
        if not 0 < self.attention_factor < inf:
            problems.append(f"attention factor {self.attention_factor}, allowed above 0")
        if not all(0 < factor < inf for factor in self.factors):
            problems.append("factors, allowed above 0")
        if (self.kind == "factors") != bool(self.factors):
            problems.append(f"{len(self.factors)} factors for kind {self.kind}")
        if problems:
            raise ConfigError(f"rope scaling: found {'; '.join(problems)}")


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

    norm: str = "rms"
    norm_at: str = "pre"  # post: after the residual sum; sandwich: before and after; parallel
    norm_eps: float = 1e-5
    norm_offset: float = 0.0  # Gemma's norms multiply by 1 + weight
    final_norm: bool = True
    act: str = "silu"
    gated: bool = True
    causal: bool = True

    positions: str = "rope"
    position_offset: int = 0  # row of the table that position 0 takes (RoBERTa: 2)
    rope_base: float = 10_000.0
    rope_dims: int | None = None  # channels of a head that are rotated; None: all
    rope_scaling: RopeScaling | None = None
    local_rope_base: float | None = None  # of the layers with a window, where it differs

    window: int | None = None  # positions a query of a local layer attends to, its own included
    local: tuple[bool, ...] = ()  # which layers are local; empty: none
    qk_norm: bool = False
    attention_scale: float | None = None  # of the scores; None: head_dim ^ -1/2
    attention_softcap: float | None = None  # c: scores become c * tanh(score / c)
    logit_softcap: float | None = None
    embed_scale: float = 1.0
    embed_norm: bool = False
    token_types: int = 0

    qkv_bias: bool = False
    out_bias: bool = False  # on the attention's output projection
    mlp_bias: bool = False

    head: str = "lm"
    tied: bool = False  # the head's matrix is the embedding's
    pooler: bool = False  # a dense layer on the first position
    labels: tuple[str, ...] = ()  # names of a label head's outputs
    pool: str = "last"  # the position that a label head reads
    pool_act: str = "tanh"  # between the pooler and a label head
    label_bias: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab", "dim", "layers", "heads", "kv_heads", "head_dim", "ff", "context")
        problems = [
            f"{name}: found {getattr(self, name)}, allowed a whole number from 1 to 2^31"
            for name in sizes
            if not 1 <= getattr(self, name) <= 2**31
        ]
        problems += [
            f"{name}: found {getattr(self, name)}, allowed {', '.join(allowed)}"
            for name, allowed in CHOICES.items()
            if getattr(self, name) not in allowed
        ]
        if not problems and self.heads % self.kv_heads:
            problems.append(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        widest = max(self.vocab, self.dim, self.heads * self.head_dim, self.ff)
        widest = max(widest, self.context if self.positions == "learned" else 0)
        if not problems and widest * self.dim >= 2**60:  # torch counts bytes in 64 bits
            problems.append(f"matrices of {widest:,} by {self.dim:,}, allowed below 2^60 numbers")
        if self.positions == "rope" and (self.rotated < 2 or self.rotated > self.head_dim):
            problems.append(f"rope_dims: found {self.rotated}, allowed 2 to {self.head_dim}")
        if self.positions == "rope" and self.rotated % 2:
            problems.append(f"rope_dims: found {self.rotated}, allowed an even number")
        factors = self.rope_scaling.factors if self.rope_scaling is not None else ()
        if factors and len(factors) != self.rotated // 2:
            problems.append(f"rope factors: found {len(factors)}, allowed {self.rotated // 2}")
        for name in ("attention_scale", "attention_softcap", "logit_softcap", "embed_scale"):
            value = getattr(self, name)
            if value is not None and not 0 < value < inf:
                problems.append(f"{name}: found {value}, allowed above 0")
        if not 0 < self.norm_eps < 1:
            problems.append(f"norm_eps: found {self.norm_eps}, allowed above 0 and below 1")
        for name in ("rope_base", "local_rope_base"):
            value = getattr(self, name)
            if value is not None and not 1 <= value < inf:
                problems.append(f"{name}: found {value}, allowed 1 or more")
        if self.window is not None and not 1 <= self.window <= 2**31:
            problems.append(f"window: found {self.window}, allowed 1 or more")
        if self.local and (len(self.local) != self.layers or self.window is None):
            problems.append(f"local: found {len(self.local)} layers, allowed {self.layers}")
        if not 0 <= self.token_types <= 2**16 or not 0 <= self.position_offset <= 2**16:
            problems.append("token_types or position_offset: allowed 0 to 65,536")
        if self.head == "label" and not self.labels:
            problems.append("labels: found none, allowed one or more")
        if problems:
            raise ConfigError("model config: " + "; ".join(problems))

    @property
    def rotated(self) -> int:
        """Channels of a head that rotary position embedding rotates."""
        return self.head_dim if self.rope_dims is None else self.rope_dims
