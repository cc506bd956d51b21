"""Bottleneck adapters: a small trained network behind, or beside, every frozen sublayer.

    y' = y + s (U act(W z + w) + u)      W (R, D) random · U (D, R), w, u zero

R = D / reduction; y is what a sublayer adds to the residual stream, x the stream before it. U and u
start at zero, so step 0 is exactly the base. The designs differ in what the adapter reads, and
where they stand:

    houlsby    z = y        attention, MLP    Houlsby et al. 2019, arXiv:1902.00751, section 2.1
    pfeiffer   z = x + y    MLP               Pfeiffer et al. 2020, arXiv:2005.00247, section 2.2.3
    parallel   z = x        MLP, s = 4        He et al. 2021, arXiv:2110.04366, section 3.3

By where the norms of a block are:

    pre        as above: the adapter reads the stream itself, not what a norm makes of it
    post       pfeiffer reads norm(x + y); y' is then added and normed as y would be (BERT)
    sandwich   y is what the second norm returns (Gemma 2, Gemma 3)
    parallel   each of the two adapters has its own sublayer's x and y (GPT-NeoX)

The first two are what AdapterHub's `adapters` 1.2 computes for BERT, Llama, GPT-2 and those like
them. It has no family with sandwich norms. Its one family with parallel sublayers is GPT-J, whose
MLP adapter has the stream after attention for x. He et al. have their x in BART, a post-norm model,
where it is the sublayer's input; before a norm the two differ, and here it is the library's x.

The library starts otherwise: "bert" (houlsby, pfeiffer) draws W and U with a deviation of 0.02, so
that step 0 is only near the base; "mam_adapter" (parallel) is what stands here for all three.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minift.errors import ConfigError
from minift.kernels.activations import ACTIVATIONS
from minift.model.attention_mask import ForwardContext
from minift.model.transformer import MLP, Attention, Transformer, branch
from minift.peft.about import About
from minift.peft.module_copy import trainable_options
from minift.peft.names import as_tuples
from minift.peft.slots import insert

SUBLAYERS = ("attn", "mlp")
RATE = 1e-3
ABOUT = About(
    equation="y' = y + s (U act(W z + w) + u)   W (R, D) random · U (D, R), w, u zero",
    paper="arXiv:1902.00751",
    changes="the MLP",
    formula="2 D R + R + D for each adapter",
    merges=False,
    merging="act stands between W and U",
    use="AdapterHub is to load it, or a change should be no product of two matrices alone",
)


@dataclass(frozen=True)
class Plan:
    """What is left open of a design."""

    sublayers: tuple[str, ...]
    act: str
    reduction: float
    scale: float

    def width(self, dim: int) -> int:
        """R, rounded down, at least 1."""
        return max(1, int(dim // self.reduction))


DESIGNS = {
    "houlsby": Plan(("attn", "mlp"), "silu", 16, 1.0),
    "pfeiffer": Plan(("mlp",), "relu", 16, 1.0),
    "parallel": Plan(("mlp",), "relu", 2, 4.0),
}
LEAST, MOST = 2**-10, 2**31  # of the reduction; below 1 the adapter is wider than the model


@dataclass(frozen=True)
class Bottleneck:
    """Which adapters stand where, and how thin they are."""

    design: str = field(
        default="pfeiffer", metadata={"help": "what an adapter reads: houlsby, pfeiffer, parallel"}
    )
    reduction: float | None = field(
        default=None,
        metadata={"help": "model width over adapter width; default 16, with parallel 2"},
    )
    bottleneck_act: str | None = field(
        default=None,
        metadata={"help": f"{', '.join(ACTIVATIONS)}; default relu, with houlsby silu"},
    )
    bottleneck_scale: float | None = field(
        default=None, metadata={"help": "an adapter's output times this; default 1, parallel 4"}
    )
    bottleneck_dropout: float = field(
        default=0.0, metadata={"help": "share of an adapter's outputs dropped"}
    )
    sublayers: tuple[str, ...] = field(
        default=(), metadata={"help": "attn, mlp; default mlp, with houlsby both"}
    )

    def __post_init__(self) -> None:
        as_tuples(self, names=("sublayers",))
        problems = []
        if self.design not in DESIGNS:
            problems.append(f"design: found {self.design}, allowed {', '.join(DESIGNS)}")
        if self.reduction is not None and not within(self.reduction, LEAST, MOST):
            problems.append(f"reduction: found {self.reduction}, allowed {LEAST} to {MOST:,}")
        if self.bottleneck_act is not None and self.bottleneck_act not in ACTIVATIONS:
            allowed = ", ".join(ACTIVATIONS)
            problems.append(f"bottleneck_act: found {self.bottleneck_act}, allowed {allowed}")
        scale, dropout = self.bottleneck_scale, self.bottleneck_dropout
        if scale is not None and (not within(scale, -inf, inf) or not 0 < abs(scale) < inf):
            problems.append(f"bottleneck_scale: found {scale}, allowed a number other than 0")
        if not within(dropout, 0, 1) or dropout == 1:
            problems.append(f"bottleneck_dropout: found {dropout}, allowed 0 or more, below 1")
        if set(self.sublayers) - set(SUBLAYERS) or len(set(self.sublayers)) < len(self.sublayers):
            found = ",".join(map(str, self.sublayers))
            problems.append(f"sublayers: found {found}, allowed {', '.join(SUBLAYERS)}")
        if problems:
            raise ConfigError("\n  ".join(problems))

    @property
    def plan(self) -> Plan:
        """What was given, and the design's own values for the rest."""
        usual = DESIGNS[self.design]
        return Plan(
            self.sublayers or usual.sublayers,
            self.bottleneck_act or usual.act,
            self.reduction or usual.reduction,
            self.bottleneck_scale or usual.scale,
        )

    def __str__(self) -> str:
        plan = self.plan
        return f"{self.design} bottlenecks of D/{plan.reduction:g} on {','.join(plan.sublayers)}"


def within(value: object, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # type: ignore[operator]


class BottleneckLayer(nn.Module):
    """What hangs on one sublayer."""

    NOT_MERGEABLE = "a nonlinearity stands between its two matrices"

    def __init__(self, embed: nn.Embedding, config: Bottleneck, generator: torch.Generator):
        super().__init__()
        self.config, self.plan = config, config.plan
        dim = embed.embedding_dim
        width = self.plan.width(dim)
        down = torch.empty(width, dim, dtype=torch.float32)
        down.uniform_(-(dim**-0.5), dim**-0.5, generator=generator)  # as torch's Linear
        self.down = nn.Parameter(down.to(**trainable_options(embed)))
        self.down_bias = nn.Parameter(self.down.new_zeros(width))
        self.up = nn.Parameter(self.down.new_zeros(dim, width))
        self.up_bias = nn.Parameter(self.down.new_zeros(dim))

    def forward(self, sublayer: Attention | MLP, x: Tensor, context: ForwardContext) -> Tensor:
        y = branch(sublayer, x, context)  # (B, T, D)
        match self.config.design:
            case "houlsby":
                z = y
            case "parallel":
                z = x
            case _:
                z = sublayer.norm(x + y) if sublayer.post else x + y
        h = F.linear(z.to(self.down.dtype), self.down, self.down_bias)  # (B, T, R)
        u = F.linear(ACTIVATIONS[self.plan.act](h), self.up, self.up_bias)  # (B, T, D)
        u = F.dropout(u * self.plan.scale, self.config.bottleneck_dropout, self.training)
        return y + u.to(y.dtype)


def target_modules(model: Transformer, config: Bottleneck) -> Iterator[tuple[str, Attention | MLP]]:
    """Every sublayer that gets an adapter: (`blocks.0.mlp`, sublayer), in the model's order."""
    for i in range(model.config.layers):
        for name in SUBLAYERS:
            sublayer = model.get_submodule(f"blocks.{i}.{name}")
            assert isinstance(sublayer, Attention | MLP)
            if name in config.plan.sublayers:
                yield f"blocks.{i}.{name}", sublayer


def attach(model: Transformer, config: Bottleneck, name: str, seed: int) -> None:
    """Hang an adapter on every sublayer of the plan. The same seed gives the same W."""
    generator = torch.Generator().manual_seed(seed)
    for path, _ in target_modules(model, config):
        insert(model, path, name, BottleneckLayer(model.embed, config, generator))


def count(model: Transformer, config: Bottleneck) -> int:
    """Trainable numbers, in closed form."""
    D, R = model.config.dim, config.plan.width(model.config.dim)
    return model.config.layers * len(config.plan.sublayers) * (2 * D * R + R + D)
