"""LoRA: a frozen weight plus a trained product of two low-rank matrices.

    y = x Wᵀ + s (D(x) Aᵀ) Bᵀ        A (R, in) random · B (out, R) zero · s = alpha / R

Hu et al. 2021, arXiv:2106.09685, section 4.1. B starts at zero, so step 0 is exactly the base. A
starts as torch's Linear does: uniform within 1/sqrt(in), as in the authors' code (the paper says
Gaussian, which is `lora_init="gaussian"`).

    rslora     s = alpha / sqrt(R) keeps the size of the change steady as the rank grows
               (Kalajdzievski 2023, arXiv:2312.03732)
    dora       y = m ⊙ (W + s B A) x / ‖W + s B A‖, a trained length m for each row of the weight,
               which starts at the row's own; the norm is not differentiated (Liu et al. 2024,
               arXiv:2402.09353, section 4.3)
    pissa      A₀ and B₀ are the R largest singular directions of W: y = W x + s (B A − B₀ A₀) x,
               so the base stays as it is (the paper subtracts B₀ A₀ from W; Meng et al. 2024,
               arXiv:2404.02948, section 3). In files a plain LoRA of rank 2 R
    lr_ratio   B learns at this multiple of A's rate (LoRA+; Hayou et al. 2024, arXiv:2402.12354)

    lora_bias  y = W x + s (B A x + b), b from zero: a bias of the change's own

With `embed` and `head` among the targets the token table and the output matrix change too: the row
of a token by s B A[:, token], where A starts at zero and B Gaussian, as in the authors' code; with
dora a length for each of its columns. `tokens` instead trains the rows of a few tokens whole
(token_rows.py). An encoder's `pooler` and the dense layer of its masked-word head may be named too.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minift.errors import ConfigError
from minift.kernels.lora.reference import Adapted, adapted_linear, low_rank
from minift.kernels.quantized.linear import QuantizedLinear
from minift.model.transformer import Transformer
from minift.peft import token_rows
from minift.peft.about import About
from minift.peft.module_copy import trainable_options
from minift.peft.names import as_tuples, summarize_targets
from minift.peft.slots import APART, WHOLE, changes, insert, members

INITS = ("uniform", "gaussian", "pissa")
RATE = 5e-4
ABOUT = About(
    equation="y = x Wᵀ + s (D(x) Aᵀ) Bᵀ   A (R, in) random · B (out, R) zero · s = alpha / R",
    paper="arXiv:2106.09685",
    changes="linears",
    formula="R (in + out) a matrix, out more with dora or lora_bias, D for each of `tokens`",
    merges=True,
    merging="W + s B A, its rows rescaled to m with dora",
    use="the first choice: it costs nothing once merged, and most programs load it",
)


@dataclass(frozen=True)
class LoRA:
    """Which matrices change, and by a product of which rank."""

    rank: int = field(default=8, metadata={"help": "rank of the change"})
    alpha: float = field(default=16.0, metadata={"help": "the change is scaled by alpha / rank"})
    dropout: float = field(default=0.0, metadata={"help": "share of a change's inputs dropped"})
    rslora: bool = field(default=False, metadata={"help": "scale by alpha / sqrt(rank) instead"})
    targets: tuple[str, ...] = field(
        default=("all",),
        metadata={"help": "attention, mlp, all, embed, head, or names among q k v o gate up down"},
    )
    dora: bool = field(default=False, metadata={"help": "train the length of each row apart"})
    lora_init: str = field(default="uniform", metadata={"help": "uniform, gaussian or pissa"})
    lora_bias: bool = field(default=False, metadata={"help": "train a bias of each change too"})
    lr_ratio: float = field(default=1.0, metadata={"help": "B's learning rate over A's (LoRA+)"})
    ranks: tuple[tuple[str, int], ...] = field(
        default=(), metadata={"help": "other ranks, by name or path of a target: down=16,q=4"}
    )
    alphas: tuple[tuple[str, float], ...] = field(
        default=(), metadata={"help": "other alphas, by name or path of a target"}
    )
    tokens: tuple[int, ...] = field(
        default=(), metadata={"help": "ids of tokens whose own rows of the table are trained too"}
    )
    token_rows: tuple[str, ...] = field(
        default=WHOLE, metadata={"help": "the tables with those rows: embed, head or both"}
    )

    def __post_init__(self) -> None:
        names = ("targets", "token_rows")
        as_tuples(self, names=names, ids=("tokens",), pairs=("ranks", "alphas"))
        for name, rank in (("rank", self.rank), *self.ranks):
            if type(rank) is not int or rank < 1:
                raise ConfigError(f"{name}: found {rank}, allowed a whole number from 1")
        for name, alpha in (("alpha", self.alpha), *self.alphas):
            if not 0 < alpha < float("inf"):
                raise ConfigError(f"{name}: found {alpha}, allowed a number above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: found {self.dropout}, allowed 0 or more and below 1")
        if self.lora_init not in INITS:
            raise ConfigError(f"lora_init: found {self.lora_init}, allowed {', '.join(INITS)}")
        if not 0 < self.lr_ratio < float("inf"):
            raise ConfigError(f"lr_ratio: found {self.lr_ratio}, allowed a number above 0")
        if not self.targets:
            raise ConfigError(
                "targets: found none, allowed attention, mlp, all, or names of linears"
            )
        if self.dora and self.lora_init == "pissa":
            raise ConfigError("dora: found with lora_init pissa, allowed one of the two")
        if self.lora_bias and (self.dora or self.lora_init == "pissa"):
            raise ConfigError("lora_bias: found with dora or pissa, allowed one of them")
        token_rows.check(self.tokens, self.token_rows, self.targets)

    def __str__(self) -> str:
        kind = "DoRA" if self.dora else "LoRA"
        rows = f" and {len(self.tokens)} token rows" if self.tokens else ""
        return (
            f"{kind} r={self.rank} alpha={self.alpha:g} on {summarize_targets(self.targets)}{rows}"
        )

    def rank_at(self, path: str) -> int:
        return _at(self.ranks, path, self.rank)

    def scale_at(self, path: str) -> float:
        rank, alpha = self.rank_at(path), _at(self.alphas, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _at(pairs: tuple[tuple[str, Any], ...], path: str, usual: Any) -> Any:
    """The value for a path: its own, else that of its last name, else the usual one."""
    found = dict(pairs)
    return found.get(path, found.get(path.rpartition(".")[2], usual))


class LoRALayer(nn.Module):
    """What hangs on one linear."""

    A0: Tensor | None
    B0: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        config: LoRA,
        path: str,
        generator: torch.Generator,
        started: bool = True,  # a file's start is not decomposed again
    ):
        super().__init__()
        self.config, self.scale = config, config.scale_at(path)
        self.site = zlib.crc32(path.encode())  # its dropout mask is drawn by it
        rank = config.rank_at(path)
        self.A = nn.Parameter(start(rank, linear.in_features, config, generator))
        self.A.data = self.A.data.to(**trainable_options(linear))
        self.B = nn.Parameter(self.A.new_zeros(linear.out_features, rank))
        self.register_buffer("A0", None)  # pissa: where the two started
        self.register_buffer("B0", None)
        if config.lora_init == "pissa" and not started:
            self.A0, self.B0 = torch.zeros_like(self.A.data), torch.zeros_like(self.B.data)
        elif config.lora_init == "pissa":
            weight = linear.weight.detach().to(self.A.dtype)
            U, S, V = torch.linalg.svd(weight, full_matrices=False)
            root = (S[:rank] / self.scale).sqrt()
            self.A.data = (root[:, None] * V[:rank]).contiguous()
            self.B.data = (U[:, :rank] * root).contiguous()
            self.A0, self.B0 = self.A.data.clone(), self.B.data.clone()
        self.magnitude: nn.Parameter | None = None
        if config.dora:
            weight = linear.weight.detach().to(self.A.dtype)
            self.magnitude = nn.Parameter(weight.norm(dim=1))  # (out,)
        self.b = nn.Parameter(self.A.new_zeros(len(self.B))) if config.lora_bias else None
        self.lr_ratios = {"B": config.lr_ratio}

    @property
    def derived(self) -> bool:
        """Whether the files hold something else than the parameters."""
        return self.A0 is not None

    @property
    def added(self) -> bool:
        """Whether a low-rank sum is all that it does to its linear."""
        return self.magnitude is None and self.b is None

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole change, what pissa started from taken off again."""
        if self.A0 is None or self.B0 is None:
            return self.A, self.B
        return torch.cat((self.A, self.A0)), torch.cat((self.B, -self.B0), dim=1)

    def forward(self, linear: nn.Linear, x: Tensor) -> Tensor:
        if self.magnitude is not None:
            return self.dora(linear, x, self.drop)
        y = adapted_linear(x, self.low_rank_change(linear))
        return y if self.b is None else y + (self.scale * self.b).to(y.dtype)

    @property
    def drop(self) -> float:
        return self.config.dropout if self.training else 0.0

    def adapted(self, linear: nn.Linear) -> Adapted | None:
        """The linear and what is added to it; None where more than a low-rank product is."""
        return self.low_rank_change(linear) if self.magnitude is None and self.b is None else None

    def low_rank_change(self, linear: nn.Linear) -> Adapted:
        A, B = self.factors()
        # Pissa's change is a small difference of two large products.
        return Adapted(linear, A, B, self.scale, self.drop, self.derived, self.site)

    def dora(self, linear: nn.Linear, x: Tensor, drop: float) -> Tensor:
        """W x, b and m ‖W + s B A‖⁻¹ (...): the dropped inputs make the change, and only it."""
        assert self.magnitude is not None
        with torch.no_grad():
            weight = linear.weight.to(self.A.dtype)
            norm = (weight + self.scale * (self.B @ self.A)).norm(dim=1)  # (out,)
        gain = self.magnitude / norm
        y, dropped = product(linear, x), F.dropout(x, drop)
        kept = product(linear, dropped) if drop else y
        change = F.linear(F.linear(dropped.to(self.A.dtype), self.A), self.B) * (gain * self.scale)
        y = y + (gain - 1).to(y.dtype) * kept + change.to(y.dtype)
        return y if linear.bias is None else y + linear.bias

    def merged(self, linear: nn.Linear) -> dict[str, Tensor]:
        """W + s B A in the change's own precision, rounded once to the base's."""
        A, B = self.factors()
        base = linear.weight
        weight = base.to(A.dtype) + self.scale * (B @ A)  # (out, in)
        if self.magnitude is not None:
            weight = weight * (self.magnitude / weight.norm(dim=1))[:, None]
        new = {"weight": weight.to(base.dtype)}
        if self.b is not None:
            bias = self.scale * self.b
            bias = bias if linear.bias is None else linear.bias.to(bias.dtype) + bias
            new["bias"] = bias.to(base.dtype)
        return new


def product(linear: nn.Linear, x: Tensor) -> Tensor:
    """x Wᵀ, the bias left out."""
    if isinstance(linear, QuantizedLinear):
        return linear.product(x)
    return F.linear(x, linear.weight)


class LoRAEmbedding(nn.Module):
    """What is added to the token table: asked after it."""

    def __init__(self, embed: nn.Embedding, config: LoRA, generator: torch.Generator):
        super().__init__()
        self.config, self.scale = config, config.scale_at("embed")
        rank, options = config.rank_at("embed"), trainable_options(embed)
        B = torch.empty(embed.embedding_dim, rank).normal_(generator=generator)
        self.A = nn.Parameter(torch.zeros(rank, embed.num_embeddings, **options))
        self.B = nn.Parameter(B.to(**options))
        self.magnitude: nn.Parameter | None = None
        if config.dora:  # of the columns, (D,): PEFT's choice
            self.magnitude = nn.Parameter(embed.weight.detach().to(self.A.dtype).norm(dim=0))

    def forward(self, embed: nn.Embedding, tokens: Tensor, out: Tensor) -> Tensor:
        change = F.linear(F.embedding(tokens, self.A.T), self.B) * self.scale  # (B, T, D)
        if self.magnitude is None:
            return out + change.to(out.dtype)
        with torch.no_grad():
            norm = self.whole(embed).norm(dim=0)  # (D,)
        return ((out + change) * (self.magnitude / norm)).to(out.dtype)

    def whole(self, embed: nn.Embedding) -> Tensor:
        return embed.weight.to(self.A.dtype) + self.scale * (self.B @ self.A).T  # (V, D)

    def merged(self, embed: nn.Embedding) -> dict[str, Tensor]:
        weight = self.whole(embed)
        if self.magnitude is not None:
            weight = weight * (self.magnitude / weight.norm(dim=0))
        return {"weight": weight.to(embed.weight.dtype)}


class LoRAHead(LoRALayer):
    """A linear that stands alone, the output matrix for one, is asked first."""

    added = False  # after its module, where rows are not told apart

    def forward(self, head: nn.Linear, x: Tensor, out: Tensor) -> Tensor:  # type: ignore[override]
        if self.magnitude is not None:
            return self.dora(head, x, self.drop)
        y = out + low_rank(x, *self.factors(), self.scale, self.drop)
        return y if self.b is None else y + (self.scale * self.b).to(y.dtype)


def start(rank: int, inputs: int, config: LoRA, generator: torch.Generator) -> Tensor:
    """The random A."""
    A = torch.empty(rank, inputs, dtype=torch.float32)
    if config.lora_init == "gaussian":
        A.normal_(0, 1 / rank, generator=generator)
    else:
        A.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    return A


def target_modules(model: Transformer, config: LoRA) -> Iterator[tuple[str, nn.Module, int, int]]:
    """Every target: (path, module, inputs, outputs)."""
    for path, linear in members(model, config.targets):
        yield path, linear, linear.in_features, linear.out_features
    if "embed" in config.targets:
        yield "embed", model.embed, model.config.vocab, model.config.dim
    if "head" in config.targets:
        if not isinstance(model.head, nn.Linear):
            raise ConfigError(f"targets: found head, and {model.config.family} has no matrix there")
        yield "head", model.head, model.config.dim, model.config.vocab
    modules = dict(model.named_modules())
    for path in (path for path in APART if path in config.targets):
        module = modules.get(path)
        if not isinstance(module, nn.Linear):
            raise ConfigError(f"targets: found {path}, and {model.config.family} has none there")
        yield path, module, module.in_features, module.out_features


def attach(model: Transformer, config: LoRA, name: str, seed: int) -> None:
    """Hang a change on every target. The same seed gives the same A."""
    check_ranks(model, config)
    insert_all(model, config, name, seed, started=True)


def make(model: Transformer, config: LoRA, name: str, seed: int) -> None:
    """The same for a file, which may have more ranks than a matrix can use, and its own start."""
    insert_all(model, config, name, seed, started=False)


def check_ranks(model: Transformer, config: LoRA) -> None:
    found = list(target_modules(model, config))
    for path, _, inputs, outputs in found:
        rank, most = config.rank_at(path), min(inputs, outputs)
        if rank > most:
            raise ConfigError(f"rank: found {rank}, allowed at most {most}, the size of {path}")
    known = {path.rpartition(".")[2] for path, *_ in found} | {path for path, *_ in found}
    for key in (key for key, _ in (*config.ranks, *config.alphas)):
        if key not in known:
            raise ConfigError(f'ranks: found "{key}", allowed one of the targets')


def insert_all(model: Transformer, config: LoRA, name: str, seed: int, started: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    for path, module, *_ in list(target_modules(model, config)):
        change: nn.Module
        if isinstance(module, nn.Embedding):
            change = LoRAEmbedding(module, config, generator)
        else:
            assert isinstance(module, nn.Linear)
            kind = LoRAHead if path == "head" or path in APART else LoRALayer
            change = kind(module, config, path, generator, started)
        insert(model, path, name, change)
    token_rows.attach(model, config.tokens, config.token_rows, name, config.lora_init == "pissa")


def changes_of(model: Transformer, name: str) -> dict[str, LoRALayer | LoRAEmbedding]:
    """An adapter's low-rank products by path."""
    found = {path: change for path, _, change in changes(model, name)}
    return {path: c for path, c in found.items() if isinstance(c, LoRALayer | LoRAEmbedding)}


def count(model: Transformer, config: LoRA) -> int:
    """Trainable numbers, in closed form."""
    found = list(target_modules(model, config))
    lengths = sum(outputs for _, _, _, outputs in found) if config.dora else 0
    biases = sum(o for path, _, _, o in found if path != "embed") if config.lora_bias else 0
    whole_rows = token_rows.count(model, config.tokens, config.token_rows)
    factors = sum(config.rank_at(path) * (i + o) for path, _, i, o in found)
    return factors + lengths + biases + whole_rows
