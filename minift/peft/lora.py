"""LoRA: a frozen weight plus a trained product of two thin matrices.

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

Touches: linears; the embedding and the head where named.
Trainable: R (in + out) a matrix, out more with dora or lora_bias, dim for each of `tokens`.
Merging: W + s B A, its rows rescaled to m with dora.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minift.errors import ConfigError, one_line
from minift.kernels.lora.reference import Adapted, adapted_linear, low_rank
from minift.kernels.quantized.linear import QuantizedLinear
from minift.model.transformer import Transformer
from minift.peft import token_rows
from minift.peft.format import Format, Problems, Shapes, number, one, whole
from minift.peft.names import in_short, tuples_of
from minift.peft.places import APART, WHOLE, changes, hang, members
from minift.peft.spelling import Spelling, Theirs
from minift.peft.token_rows import TableRows

INITS = ("uniform", "gaussian", "pissa")
# PEFT's: those that leave the base's weights alone, and those that do not.
BASE_KEEPING = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga")
LENGTHS = "lora_magnitude_vector"
THIN = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", LENGTHS)
RATE = 5e-4


@dataclass(frozen=True)
class LoRA:
    """Which matrices change, and by how thin a product."""

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
        tuples_of(self, names=names, ids=("tokens",), pairs=("ranks", "alphas"))
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
        return f"{kind} r={self.rank} alpha={self.alpha:g} on {in_short(self.targets)}{rows}"

    def rank_at(self, path: str) -> int:
        return _at(self.ranks, path, self.rank)

    def scale_at(self, path: str) -> float:
        rank, alpha = self.rank_at(path), _at(self.alphas, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _at(pairs: tuple[tuple[str, Any], ...], path: str, usual: Any) -> Any:
    """The value for a path: its own, else that of its last name, else the usual one."""
    found = dict(pairs)
    return found.get(path, found.get(path.rpartition(".")[2], usual))


class Change(nn.Module):
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
        rank, weight = config.rank_at(path), linear.weight.detach()
        self.A = nn.Parameter(start(rank, linear.in_features, config, weight, generator))
        # float32 even on a bf16 base: an AdamW step is smaller than bf16 can add to a weight.
        self.B = nn.Parameter(self.A.new_zeros(linear.out_features, rank))
        self.register_buffer("A0", None)  # pissa: where the two started
        self.register_buffer("B0", None)
        if config.lora_init == "pissa" and not started:
            self.A0, self.B0 = torch.zeros_like(self.A.data), torch.zeros_like(self.B.data)
        elif config.lora_init == "pissa":
            U, S, V = torch.linalg.svd(weight.to(self.A.dtype), full_matrices=False)
            root = (S[:rank] / self.scale).sqrt()
            self.A.data = (root[:, None] * V[:rank]).contiguous()
            self.B.data = (U[:, :rank] * root).contiguous()
            self.A0, self.B0 = self.A.data.clone(), self.B.data.clone()
        self.m: nn.Parameter | None = None
        if config.dora:
            self.m = nn.Parameter(weight.to(self.A.dtype).norm(dim=1))  # (out,)
        self.b = nn.Parameter(self.A.new_zeros(len(self.B))) if config.lora_bias else None
        self.lr_ratios = {"B": config.lr_ratio}

    @property
    def derived(self) -> bool:
        """Whether the files hold something else than the parameters."""
        return self.A0 is not None

    @property
    def added(self) -> bool:
        """Whether a thin sum is all that it does to its linear."""
        return self.m is None and self.b is None

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the whole change, what pissa started from taken off again."""
        if self.A0 is None or self.B0 is None:
            return self.A, self.B
        return torch.cat((self.A, self.A0)), torch.cat((self.B, -self.B0), dim=1)

    def forward(self, linear: nn.Linear, x: Tensor) -> Tensor:
        if self.m is not None:
            return self.dora(linear, x, self.drop)
        y = adapted_linear(x, self.thin(linear))
        return y if self.b is None else y + (self.scale * self.b).to(y.dtype)

    @property
    def drop(self) -> float:
        return self.config.dropout if self.training else 0.0

    def adapted(self, linear: nn.Linear) -> Adapted | None:
        """The linear and what is added to it; None where more than a thin product is."""
        return self.thin(linear) if self.m is None and self.b is None else None

    def thin(self, linear: nn.Linear) -> Adapted:
        A, B = self.factors()
        # Pissa's change is a small difference of two large products.
        return Adapted(linear, A, B, self.scale, self.drop, self.derived, self.site)

    def dora(self, linear: nn.Linear, x: Tensor, drop: float) -> Tensor:
        """W x, b and m ‖W + s B A‖⁻¹ (...): the dropped inputs make the change, and only it."""
        assert self.m is not None
        with torch.no_grad():
            weight = linear.weight.to(self.A.dtype)
            norm = (weight + self.scale * (self.B @ self.A)).norm(dim=1)  # (out,)
        gain = self.m / norm
        y, dropped = product(linear, x), F.dropout(x, drop)
        kept = product(linear, dropped) if drop else y
        thin = F.linear(F.linear(dropped.to(self.A.dtype), self.A), self.B) * (gain * self.scale)
        y = y + (gain - 1).to(y.dtype) * kept + thin.to(y.dtype)
        return y if linear.bias is None else y + linear.bias

    def merged(self, linear: nn.Linear) -> dict[str, Tensor]:
        """W + s B A in the change's own precision, rounded once to the base's."""
        A, B = self.factors()
        base = linear.weight
        weight = base.to(A.dtype) + self.scale * (B @ A)  # (out, in)
        if self.m is not None:
            weight = weight * (self.m / weight.norm(dim=1))[:, None]
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


class EmbedChange(nn.Module):
    """What is added to the token table: asked after it."""

    def __init__(self, embed: nn.Embedding, config: LoRA, generator: torch.Generator):
        super().__init__()
        self.config, self.scale = config, config.scale_at("embed")
        rank, dtype = config.rank_at("embed"), precise(embed.weight)
        device = embed.weight.device
        B = torch.empty(embed.embedding_dim, rank).normal_(generator=generator)
        self.A = nn.Parameter(torch.zeros(rank, embed.num_embeddings, device=device, dtype=dtype))
        self.B = nn.Parameter(B.to(device, dtype))
        self.m: nn.Parameter | None = None
        if config.dora:  # of the columns, (D,): PEFT's choice
            self.m = nn.Parameter(embed.weight.detach().to(dtype).norm(dim=0))

    def forward(self, embed: nn.Embedding, tokens: Tensor, out: Tensor) -> Tensor:
        thin = F.linear(F.embedding(tokens, self.A.T), self.B) * self.scale  # (B, T, D)
        if self.m is None:
            return out + thin.to(out.dtype)
        with torch.no_grad():
            norm = self.whole(embed).norm(dim=0)  # (D,)
        return ((out + thin) * (self.m / norm)).to(out.dtype)

    def whole(self, embed: nn.Embedding) -> Tensor:
        return embed.weight.to(self.A.dtype) + self.scale * (self.B @ self.A).T  # (V, D)

    def merged(self, embed: nn.Embedding) -> dict[str, Tensor]:
        weight = self.whole(embed)
        if self.m is not None:
            weight = weight * (self.m / weight.norm(dim=0))
        return {"weight": weight.to(embed.weight.dtype)}


class HeadChange(Change):
    """A linear that stands alone, the output matrix for one, is asked first."""

    added = False  # after its module, where rows are not told apart

    def forward(self, head: nn.Linear, x: Tensor, out: Tensor) -> Tensor:  # type: ignore[override]
        if self.m is not None:
            return self.dora(head, x, self.drop)
        y = out + low_rank(x, *self.factors(), self.scale, self.drop)
        return y if self.b is None else y + (self.scale * self.b).to(y.dtype)


def start(
    rank: int, inputs: int, config: LoRA, weight: Tensor, generator: torch.Generator
) -> Tensor:
    A = torch.empty(rank, inputs, dtype=torch.float32)
    if config.lora_init == "gaussian":
        A.normal_(0, 1 / rank, generator=generator)
    else:
        A.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    return A.to(weight.device, precise(weight))


def precise(weight: Tensor) -> torch.dtype:
    """Of what is trained on top of a weight."""
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def places(model: Transformer, config: LoRA) -> Iterator[tuple[str, nn.Module, int, int]]:
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
    hang_all(model, config, name, seed, started=True)


def make(model: Transformer, config: LoRA, name: str, seed: int) -> None:
    """The same for a file, which may have more ranks than a matrix can use, and its own start."""
    hang_all(model, config, name, seed, started=False)


def check_ranks(model: Transformer, config: LoRA) -> None:
    found = list(places(model, config))
    for path, _, inputs, outputs in found:
        rank, most = config.rank_at(path), min(inputs, outputs)
        if rank > most:
            raise ConfigError(f"rank: found {rank}, allowed at most {most}, the size of {path}")
    known = {path.rpartition(".")[2] for path, *_ in found} | {path for path, *_ in found}
    for key in (key for key, _ in (*config.ranks, *config.alphas)):
        if key not in known:
            raise ConfigError(f'ranks: found "{key}", allowed one of the targets')


def hang_all(model: Transformer, config: LoRA, name: str, seed: int, started: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    for path, module, *_ in list(places(model, config)):
        change: nn.Module
        if isinstance(module, nn.Embedding):
            change = EmbedChange(module, config, generator)
        else:
            assert isinstance(module, nn.Linear)
            kind = HeadChange if path == "head" or path in APART else Change
            change = kind(module, config, path, generator, started)
        hang(model, path, name, change)
    token_rows.attach(model, config.tokens, config.token_rows, name, config.lora_init == "pissa")


def state_shapes(model: Transformer, config: LoRA) -> dict[str, tuple[int, ...]]:
    """What a training state must hold; pissa alone has one."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, _, inputs, outputs in places(model, config):
        rank = config.rank_at(path)
        if path == "embed":
            continue  # its files are its parameters
        for start in ("", "0"):
            shapes[f"{path}.A{start}"], shapes[f"{path}.B{start}"] = (rank, inputs), (outputs, rank)
    for path, _ in token_rows.places(model, config.tokens, config.token_rows):
        shapes[f"{path}.rows"] = (len(config.tokens), model.config.dim)
    return shapes


def changes_of(model: Transformer, name: str) -> dict[str, Change | EmbedChange]:
    """An adapter's thin products by path."""
    found = {path: change for path, _, change in changes(model, name)}
    return {path: c for path, c in found.items() if isinstance(c, Change | EmbedChange)}


def count(model: Transformer, config: LoRA) -> int:
    """Trainable numbers, in closed form."""
    found = list(places(model, config))
    lengths = sum(outputs for _, _, _, outputs in found) if config.dora else 0
    biases = sum(o for path, _, _, o in found if path != "embed") if config.lora_bias else 0
    whole_rows = token_rows.count(model, config.tokens, config.token_rows)
    thin = sum(config.rank_at(path) * (i + o) for path, _, i, o in found)
    return thin + lengths + biases + whole_rows


# ---- PEFT's files --------------------------------------------------------------------------------


def read(
    data: Mapping[str, Any], spelled: Spelling | None, there: Shapes, problems: Problems
) -> LoRA:
    """A LoRA from adapter_config.json; its targets as our paths, all of them by their own."""
    init = data.get("init_lora_weights", True)
    name = init if isinstance(init, str) else ""
    if name.startswith(BASE_CHANGING):
        problems.append(
            f"init_lora_weights is {one_line(name, 20)}, which changed the base: save it as a "
            "plain LoRA, with path_initial_model_for_weight_conversion of PEFT's save_pretrained"
        )
    elif data.get("kasa_config") is not None:
        problems.append(
            "kasa_config is there: KaSA takes the smallest singular values out of the base's own "
            "weights; merge it with PEFT and load the merged model"
        )
    elif init is not None and type(init) is not bool and name.lower() not in BASE_KEEPING:
        problems.append(f"init_lora_weights is {one_line(init)}, which minift does not have")
    ranks = one(data, "rank_pattern", dict, problems) or {}
    alphas = one(data, "alpha_pattern", dict, problems) or {}
    tokens, where = token_rows.read(data, spelled, problems)
    rank = whole(data, "r", problems)
    targets: tuple[str, ...] = ("all",)
    each: dict[str, int] = {}
    alpha = number(data, "lora_alpha", problems)
    of_alphas: tuple[tuple[str, float], ...] = ()
    if spelled is not None:
        thin = {path: leaves for path, leaves in there.items() if leaves.keys() & {*THIN}}
        targets = spelled.targets(data, thin, problems)
        # A pattern that cannot be read says nothing that the tensors do not say themselves.
        given = spelled.pattern(ranks, int, "rank_pattern", targets, problems, needed=False)
        each = {path: rank_in(thin.get(spelled.by_ours[path].path, {})) for path in targets}
        each = {path: r for path, r in each.items() if r} if given is None else given
        # Of alphas the tensors say nothing.
        found = spelled.pattern(alphas, float, "alpha_pattern", targets, problems, needed=True)
        of_alphas = tuple((found or {}).items())
    return LoRA(
        rank=rank,
        alpha=alpha,
        dropout=number(data, "lora_dropout", problems, 0.0),
        rslora=bool(one(data, "use_rslora", bool, problems)),
        dora=bool(one(data, "use_dora", bool, problems)),
        lora_bias=bool(one(data, "lora_bias", bool, problems)),
        targets=targets,
        ranks=tuple((path, r) for path, r in each.items() if r != rank),
        alphas=of_alphas,
        tokens=tokens,
        token_rows=where,
    )


def rank_in(leaves: Mapping[str, tuple[int, ...]]) -> int:
    """What the tensors of a module say of its rank; 0 where they say nothing."""
    shape = leaves.get("lora_A.weight") or leaves.get("lora_embedding_A") or ()
    return shape[0] if len(shape) == 2 else 0


def touched(model: Transformer, config: LoRA) -> list[str]:
    rows = token_rows.places(model, config.tokens, config.token_rows)
    tied = model.config.tied
    return [path for path, *_ in places(model, config)] + [
        path for path, _ in rows if path == "embed" or not tied
    ]


def write(config: LoRA, spelled: Spelling, found: Mapping[str, nn.Module]) -> dict[str, Any]:
    """adapter_config.json's part of it, as the changes are: pissa is a LoRA of twice the rank."""
    thin = {path: change for path, change in found.items() if not isinstance(change, TableRows)}
    sizes = {}
    for theirs in spelled.of(thin):
        parts = [thin.get(path) for path in theirs.ours]
        rank = len(parts[0].A) if isinstance(parts[0], EmbedChange) else len(stacked(parts)[0])
        scale = config.scale_at(next(path for path in theirs.ours if path in thin))
        sizes[theirs.path] = (rank, scale * (math.sqrt(rank) if config.rslora else rank))
    usual = max(set(sizes.values()), key=lambda size: (list(sizes.values()).count(size), size))
    return {
        "r": usual[0],
        "lora_alpha": whole_if(usual[1]),
        "rank_pattern": {p: r for p, (r, _) in sizes.items() if r != usual[0]},
        "alpha_pattern": {p: whole_if(a) for p, (_, a) in sizes.items() if a != usual[1]},
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "lora_bias": config.lora_bias,
        "target_modules": spelled.modules(thin),
        "fan_in_fan_out": any(theirs.turned for theirs in spelled.of(thin)),
        "init_lora_weights": True,
    } | token_rows.write(spelled, found)


def whole_if(alpha: float) -> float | int:
    """16, not 16.0, nor 16.000000000000004."""
    near = round(alpha)
    return near if math.isclose(alpha, near, rel_tol=1e-12) else alpha


def to_file(theirs: Theirs, parts: Sequence[nn.Module | None]) -> dict[str, Tensor]:
    """The tensors of one of their linears."""
    if isinstance(parts[0], TableRows):
        return {token_rows.LEAF: parts[0].rows}
    if isinstance(parts[0], EmbedChange):
        both: dict[str, Tensor]
        both = {"lora_embedding_A": parts[0].A, "lora_embedding_B": parts[0].B}
        return both if parts[0].m is None else both | {LENGTHS: parts[0].m}
    A, columns = stacked(parts)
    scale = next(part.scale for part in parts if isinstance(part, Change))
    blocks = []
    for size, part, first in zip(theirs.outputs, parts, columns, strict=True):
        block = A.new_zeros(size, A.shape[0])
        if isinstance(part, Change):
            B = part.factors()[1].detach()
            # One scale in the file: what another of ours has more of it goes into B.
            block[:, first : first + B.shape[1]] = B * (part.scale / scale)
        blocks.append(block)
    tensors = {"lora_A.weight": A, "lora_B.weight": theirs.join(blocks)}
    lengths = [part.m for part in parts if isinstance(part, Change) and part.m is not None]
    if lengths:
        if len(lengths) < len(parts):
            raise ConfigError(f"save_adapter: DoRA on a part of {theirs.path}, allowed all of it")
        tensors[LENGTHS] = theirs.join(lengths)
    if any(isinstance(part, Change) and part.b is not None for part in parts):
        rows = []
        for size, part in zip(theirs.outputs, parts, strict=True):
            row = A.new_zeros(size)
            if isinstance(part, Change) and part.b is not None:
                row = part.b.detach() * (part.scale / scale)
            rows.append(row)
        tensors["lora_B.bias"] = theirs.join(rows)
    return tensors


def stacked(parts: Sequence[nn.Module | None]) -> tuple[Tensor, list[int]]:
    """One A for all of ours in one of theirs (q, k and v), and where each one's rows of it begin.

    The rows stand below each other, unless all have the same, as after reading such a file.
    """
    each = [part.factors()[0].detach() if isinstance(part, Change) else None for part in parts]
    there = [A for A in each if A is not None]
    if all(torch.equal(A, there[0]) for A in there):
        return there[0], [0] * len(parts)
    sizes = [0 if A is None else len(A) for A in each]
    return torch.cat(there), [sum(sizes[:i]) for i in range(len(sizes))]


def shapes(theirs: Theirs, config: LoRA) -> dict[str, tuple[int, ...]]:
    """What the file must hold for one of their linears."""
    rank, outputs = config.rank_at(theirs.ours[0]), sum(theirs.outputs)
    if config.tokens and token_rows.table_of(theirs.ours[0]) in WHOLE:
        return {token_rows.LEAF: (len(config.tokens), theirs.inputs)}
    wanted: dict[str, tuple[int, ...]]
    if theirs.ours[0] == "embed":
        wanted = {"lora_embedding_A": (rank, outputs), "lora_embedding_B": (theirs.inputs, rank)}
        return wanted | ({LENGTHS: (theirs.inputs,)} if config.dora else {})
    wanted = {"lora_A.weight": (rank, theirs.inputs), "lora_B.weight": (outputs, rank)}
    wanted |= {"lora_B.bias": (outputs,)} if config.lora_bias else {}
    return wanted | ({LENGTHS: (outputs,)} if config.dora else {})


@torch.no_grad()
def fill(theirs: Theirs, parts: Sequence[nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Put one of their linears' tensors into our changes."""
    if isinstance(parts[0], TableRows):
        parts[0].rows.copy_(tensors[token_rows.LEAF])
        return
    if isinstance(parts[0], EmbedChange):
        parts[0].A.copy_(tensors["lora_embedding_A"])
        parts[0].B.copy_(tensors["lora_embedding_B"])
        if parts[0].m is not None:
            parts[0].m.copy_(tensors[LENGTHS])
        return
    rows = {leaf: theirs.split(t) for leaf, t in tensors.items() if leaf != "lora_A.weight"}
    for i, part in enumerate(parts):
        assert isinstance(part, Change)
        part.A.copy_(tensors["lora_A.weight"])
        part.B.copy_(rows["lora_B.weight"][i])
        if part.m is not None:
            part.m.copy_(rows[LENGTHS][i])
        if part.b is not None:
            part.b.copy_(rows["lora_B.bias"][i])


def idle(tensors: Mapping[str, Tensor]) -> bool:
    """Whether these tensors change nothing; of whole rows only the base could tell."""
    ends = ("lora_B.weight", "lora_B.bias", "embedding_A")
    thin = [t for name, t in tensors.items() if name.endswith(ends)]
    whole_rows = any(name.endswith((LENGTHS, token_rows.LEAF)) for name in tensors)
    return not whole_rows and not any(bool(t.any()) for t in thin)


FILE = Format(
    "LORA",
    read,
    touched,
    write,
    to_file,
    shapes,
    fill,
    idle,
    options=(
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern"),
        *("alpha_pattern", "target_modules", "init_lora_weights", "layers_to_transform"),
        *("exclude_modules", "lora_bias", "ensure_weight_tying", token_rows.OPTION),
    ),
    off={
        "bias": ("none", "all", "lora_only", None),
        "fan_in_fan_out": (False, True, None),
        "enable_lora": (None,),  # PEFT 0.1 and 0.2: which parts of a joined matrix learn
        "use_qalora": (False, None),
        "use_bdlora": (None, False),
        "layer_replication": (None, []),
        "target_parameters": (None, []),
        "alora_invocation_tokens": (None, []),
        # Each does more in use than add B A: routes, samples, or cuts the base.
        "arrow_config": (None,),
        "monteclora_config": (None,),
    },
    neutral=(  # how training began, went, or is written
        *("qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("velora_config", "merge_weights", "kasa_config"),
    ),
)
