"""The transformer, whole: embedding, blocks of attention and MLP, final norm, head.

Sizes, here and in every file:
    B batch · T query positions · S key positions · D model width · H query heads · K kv heads
    E head width · F mlp width · V vocab · R rank · P prompt length

A fine-tuning method changes it from outside, through these seams and no others:
  - a `Projections` group: `group.changes[name]` replaces what one of its Linears computes; where
    it can, `group.together` (and an MLP's) computes all of them at once, or says None;
  - a sublayer (`Attention`, `MLP`): `sublayer.change` replaces what it adds to the residual stream
    (asked instead of `branch`);
  - `embeds` in place of `tokens`; `past`, keys and values that every position attends to;
  - `hidden_only`, the hidden states before the head; and torch's hooks on the model itself, its
    norms, and the modules `embed` and `head`.
Where only some positions are `wanted`, the last block's x is theirs alone, (1, N, D): so a change
takes any (B, T, D) as it comes. Parameter names never change, whatever is attached.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minift.errors import ConfigError
from minift.kernels import choice
from minift.kernels.activations import ACTIVATIONS
from minift.kernels.attention.dispatch import attend
from minift.kernels.attention.packed import Packing
from minift.kernels.attention.varlen import Texts, suits
from minift.kernels.cross_entropy.dispatch import linear_cross_entropy, token_logprobs
from minift.kernels.rope.dispatch import rotate_both
from minift.model.config import ModelConfig
from minift.model.heads import LabelHead, MaskedLMHead
from minift.model.norm import make_norm
from minift.model.rope import frequencies, frequencies_on, rotary_table
from minift.model.sight import Sight, View, count, look, right_padded

FEW = 0.9  # of all rows: where more are wanted, picking them early saves nothing

Past = Sequence[tuple[Tensor, Tensor]]  # per layer: keys and values, each (1 or B, K, P, E)


class Cache(Protocol):
    """What the forward pass asks of a key/value cache (generation/cache.py has the one)."""

    length: int  # columns already written

    def mark(self, keep: Tensor | None, columns: int) -> tuple[Tensor | None, Tensor]:
        """Note which of the next columns are real; -> keep (B, S) or None, real so far (B, 1)."""

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, E) after what is there; -> all keys and values (B, K, S, E)."""

    def advance(self, columns: int) -> None:
        """The columns just written are now past."""


@dataclass(frozen=True)
class Wanted:
    """Of the last block, where only some positions' hidden states are asked for.

    Its residual stream is theirs alone, (1, N, D). Only keys and values are made of every position:
    queries stand where they belong in the batch, zero elsewhere, so that what they may see, and by
    which angles they turn, is what it always was.
    """

    context: Tensor  # (B, T, D) the residual stream of every position
    at: Tensor  # (N,) which of the B T positions are wanted

    def pick(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (1, N, C)."""
        return x.flatten(0, 1).index_select(0, self.at)[None]

    def spread(self, x: Tensor) -> Tensor:
        """(1, N, C) -> (B, T, C), zero where nothing is wanted."""
        B, T, _ = self.context.shape
        return x.new_zeros(B * T, x.shape[-1]).index_copy(0, self.at, x[0]).view(B, T, -1)


Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


def no_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), nullcontext()


@dataclass(frozen=True)
class Shared:
    """What all layers of one forward pass share."""

    whole: View
    local: View  # of the layers with a window
    cache: Cache | None
    past: Past | None
    packing: Packing | None  # how packed rows are laid out for attention
    last: int | None = None  # no position is beyond it, where that is known without asking
    wanted: Wanted | None = None  # of the last block


class Projections(nn.Module):
    """The Linears that read one input, applied together: x (B, T, in) -> a tuple of (B, T, out)."""

    def __init__(self, inputs: int, outputs: dict[str, int], bias: bool):
        super().__init__()
        self.members = tuple(outputs)
        for name, width in outputs.items():
            self.add_module(name, nn.Linear(inputs, width, bias=bias))
        self.changes = nn.ModuleDict()  # member name -> module called as change(linear, x)
        self.together: Together | None = None

    def forward(self, x: Tensor, only: tuple[str, ...] = ()) -> tuple[Tensor, ...]:
        """What all members make of x, or `only` some of them."""
        names = only or self.members
        found = None if self.together is None else self.together(self, names, x)
        return tuple(self.project(name, x) for name in names) if found is None else found

    def project(self, name: str, x: Tensor) -> Tensor:
        linear = self.get_submodule(name)
        return self.changes[name](linear, x) if name in self.changes else linear(x)


# All the named members' outputs at once, or None where that cannot be.
Together = Callable[[Projections, tuple[str, ...], Tensor], tuple[Tensor, ...] | None]


class Attention(nn.Module):
    """Self-attention with grouped keys and values. Ainslie et al. 2023, arXiv:2305.13245."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.local = bool(config.local) and config.local[layer]
        self.scale, self.cap = config.attention_scale, config.attention_cap
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.norm = make_norm(config)
        self.after = make_norm(config) if config.norm_at == "sandwich" else None
        self.qkv = Projections(config.dim, {"q": q, "k": kv, "v": kv}, bias=config.qkv_bias)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.out = Projections(q, {"o": config.dim}, bias=config.out_bias)
        self.post = config.norm_at == "post"
        self.change: nn.Module | None = None

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        return residual(self, x, shared)

    def inner(self, x: Tensor, shared: Shared) -> Tensor:
        view, wanted = shared.local if self.local else shared.whole, shared.wanted
        if wanted is None:
            q, k, v = self.qkv(x)  # (B, T, H E), (B, T, K E), (B, T, K E)
        else:
            context = wanted.context if self.post else self.norm(wanted.context)
            (q,), (k, v) = self.qkv(x, ("q",)), self.qkv(context, ("k", "v"))
            q = wanted.spread(q)  # (B, T, H E)
        B, T, _ = q.shape
        q, k, v = (p.view(B, T, -1, self.head_dim).transpose(1, 2) for p in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)  # over the channels of each head
        if view.rotary is not None:
            q, k = rotate_both(q, k, *view.rotary)  # (B, H, T, E), (B, K, T, E)
        if shared.cache is not None:
            k, v = shared.cache.write(self.layer, k, v)  # (B, K, S, E)
            q = q.to(k.dtype)  # a cache may be wider than the model
        past = None if shared.past is None else shared.past[self.layer]
        if shared.packing is None:
            y = self.read(q, k, v, past, view.sights[0])  # (B, H, T, E)
        else:
            lay, join = shared.packing.lay, shared.packing.join
            laid = zip(lay(q), lay(k), lay(v), view.sights, strict=True)
            y = join([self.read(q, k, v, past, sight) for q, k, v, sight in laid])
        y = y.transpose(1, 2).reshape(B, T, -1).to(x.dtype)
        return self.out(y if wanted is None else wanted.pick(y))[0]  # (B, T, D), or (1, N, D)

    def read(
        self, q: Tensor, k: Tensor, v: Tensor, past: tuple[Tensor, Tensor] | None, sight: Sight
    ) -> Tensor:
        """(B, H, T, E), from q of that shape and k, v (B, K, S, E) behind those of `past`."""
        if past is not None:
            k, v = (
                torch.cat((before.to(x.dtype).expand(len(x), -1, -1, -1), x), dim=2)
                for before, x in zip(past, (k, v), strict=True)
            )
        return attend(q, k, v, sight.visible, sight.causal, self.scale, self.cap, sight.texts)


class MLP(nn.Module):
    """down(act(up(x))), or gated: down(act(gate(x)) * up(x)). Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = make_norm(config)
        self.after = make_norm(config) if config.norm_at == "sandwich" else None
        widths = {"gate": config.ff, "up": config.ff} if config.gated else {"up": config.ff}
        self.hidden = Projections(config.dim, widths, bias=config.mlp_bias)
        self.out = Projections(config.ff, {"down": config.dim}, bias=config.mlp_bias)
        self.act = ACTIVATIONS[config.act]
        self.post = config.norm_at == "post"
        self.change: nn.Module | None = None
        self.together: Callable[[MLP, Tensor], Tensor | None] | None = None

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        return residual(self, x, shared)

    def inner(self, x: Tensor, shared: Shared) -> Tensor:
        found = None if self.together is None else self.together(self, x)
        if found is not None:
            return found
        first, *gated = self.hidden(x)  # (B, T, F) each: gate and up, or up alone
        h = self.act(first)
        return self.out(h * gated[0] if gated else h)[0]  # (B, T, D)


def residual(sublayer: Attention | MLP, x: Tensor, shared: Shared) -> Tensor:
    """The residual stream after one sublayer.

    pre       x + inner(norm(x))            sandwich  x + after(inner(norm(x)))
    post      norm(x + inner(x))            parallel  see Block
    """
    y = x + added(sublayer, x, shared)  # (B, T, D)
    return sublayer.norm(y) if sublayer.post else y


def added(sublayer: Attention | MLP, x: Tensor, shared: Shared) -> Tensor:
    """What a sublayer adds to the residual stream, or what its change makes of it."""
    if sublayer.change is not None:
        return sublayer.change(sublayer, x, shared)
    return branch(sublayer, x, shared)


def branch(sublayer: Attention | MLP, x: Tensor, shared: Shared) -> Tensor:
    """What the sublayer itself adds."""
    y = sublayer.inner(x if sublayer.post else sublayer.norm(x), shared)
    return y if sublayer.after is None else sublayer.after(y)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.parallel = config.norm_at == "parallel"

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        if not self.parallel:
            return self.mlp(self.attn(x, shared), shared)
        return self.attn(x, shared) + added(self.mlp, x, shared)


class Transformer(nn.Module):
    """Tokens in, logits out. `source` is the name or path that the weights came from."""

    def __init__(self, config: ModelConfig, source: str = ""):
        super().__init__()
        self.config, self.source = config, source
        self.text_format: Any = None  # how the run that trained it made its texts
        self.embed = nn.Embedding(config.vocab, config.dim)
        rows = config.context + config.position_offset
        self.places = nn.Embedding(rows, config.dim) if config.positions == "learned" else None
        self.types = nn.Embedding(config.token_types, config.dim) if config.token_types else None
        self.embed_norm = make_norm(config) if config.embed_norm else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.norm = make_norm(config) if config.final_norm else None
        self.pooler = nn.Linear(config.dim, config.dim) if config.pooler else None
        self.head = make_head(config)
        if config.tied:
            self.tie()
        self.checkpointing = False  # recompute each block in the backward pass, do not keep it
        self.checkpoint_contexts: Contexts = no_contexts  # around a block, the two times

    def tie(self) -> None:
        """Let the head use the embedding's matrix."""
        matrix = self.head.decoder if isinstance(self.head, MaskedLMHead) else self.head
        assert isinstance(matrix, nn.Linear)
        matrix.weight = self.embed.weight

    def forward(
        self,
        tokens: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        segments: Tensor | Texts | None = None,
        token_types: Tensor | None = None,
        past: Past | None = None,
        cache: Cache | None = None,
        hidden_only: bool = False,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); labels' scores (B, C) with a label head; hidden states without a head.

        With `hidden_only` the last hidden states (B, T, D), normed where the family norms them.
        tokens (B, T) int64, or embeds (B, T, D), which enter after scaling and before positions,
        token types and norm. mask (B, T): True where a position is real; padding may stand on
        either side. positions (B, T) count the real tokens of a row (of a segment, where segments
        are given) from 0, after P positions of `past` and whatever the cache holds. segments
        (B, T): a position sees its own segment only; as Texts, B = 1, nothing that runs depends on
        where they end. token_types (B, T): 0 where not given. past: read-only keys and values that
        every position sees. cache: written, and read by the next call. wanted (B, T): True at N
        real positions; only theirs come back, (N, D) or (N, V), row by row, and what the last block
        computes for the others alone is left out. Or (N,) int64, which of the B T positions.
        """
        if (tokens is None) == (embeds is None):
            raise ConfigError("model: give either tokens or embeds")
        if tokens is not None:
            x = self.embed_tokens(tokens)  # (B, T, D)
        elif embeds is not None:
            x = embeds.to(self.embed.weight.dtype)
        B, T, _ = x.shape
        if wanted is not None and (tuple(wanted.shape), wanted.dtype) not in (
            ((B, T), torch.bool),
            ((wanted.numel(),), torch.int64),
        ):
            raise ConfigError(
                f"model: wanted is {wanted.dtype} {tuple(wanted.shape)}, allowed bool {(B, T)} "
                "or int64 (N,)"
            )
        if isinstance(self.head, LabelHead) and not hidden_only:
            if wanted is not None:
                raise ConfigError("model: a label head reads a position of its own, none wanted")
            wanted = self.head.reads(mask, B, T, x.device)
        positions, shared = self.share(x, positions, mask, segments, past, cache)
        x = self.place(x, positions, token_types, shared.last)
        for block in self.blocks:
            if block is self.blocks[-1] and wanted is not None and few(wanted, B * T):
                rows = Wanted(x, wanted if wanted.dim() == 1 else wanted.flatten().nonzero()[:, 0])
                x, shared = rows.pick(x), replace(shared, wanted=rows)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(
                    block, x, shared, use_reentrant=False, context_fn=self.checkpoint_contexts
                )
            else:
                x = block(x, shared)
        if cache is not None:
            cache.advance(T)
        if wanted is not None:
            if shared.wanted is not None:
                x = x[0]  # (N, D)
            elif wanted.dim() == 1:
                x = x.flatten(0, 1).index_select(0, wanted)  # (N, D)
            else:
                x = x[wanted]  # (N, D)
        if self.norm is not None:
            x = self.norm(x)  # (B, T, D), or (N, D)
        if hidden_only or self.head is None:
            return x
        if isinstance(self.head, LabelHead):
            return self.head(x, self.pooler)  # (B, C)
        return self.logits(x)  # (B, T, V), or (N, V)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the vocabulary (..., V) from last hidden states (..., D)."""
        if self.head is None or isinstance(self.head, LabelHead):
            raise ConfigError(f"model: {self.source or self.config.family} has no language head")
        return self.capped(self.head(hidden))

    def capped(self, scores: Tensor) -> Tensor:
        """Scores as the family bounds them."""
        cap = self.config.logit_cap
        return scores if cap is None else torch.tanh(scores / cap) * cap

    def nll(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum of the negative log-probabilities of targets (N,), in nats: hidden (N, D).

        weights (N,): what each counts.
        """
        cap = self.config.logit_cap
        return linear_cross_entropy(hidden, self.head, self.logits, targets, cap, weights)

    def logprobs(
        self, hidden: Tensor, targets: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """log p(target) (N,) and the entropy (N,), in nats: hidden (N, D), targets (N,).

        Of the distribution that sampling at this temperature draws from; each row takes a gradient
        of its own for both.
        """
        cap = self.config.logit_cap
        return token_logprobs(hidden, self.head, self.logits, targets, cap, temperature)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D), scaled where the family scales."""
        x = self.embed(tokens)
        scale = self.config.embed_scale
        # The factor is rounded to the weights' dtype first, as in the models' own training.
        return x if scale == 1 else x * torch.full((), scale, dtype=x.dtype, device=x.device)

    def place(
        self, x: Tensor, positions: Tensor, token_types: Tensor | None, last: int | None
    ) -> Tensor:
        """Learned positions, token types and the norm of the embeddings, where there are any."""
        if self.types is not None:
            kinds = torch.zeros_like(positions) if token_types is None else token_types
            x = x + self.types(kinds)
        elif token_types is not None:
            raise ConfigError(f"model: family {self.config.family} has no token types")
        if self.places is not None:
            last = int(positions.max()) if last is None else last
            if last >= self.config.context:
                raise ConfigError(
                    f"model: position {last:,} is beyond the context, "
                    f"{self.config.context:,} positions"
                )
            x = x + self.places(positions + self.config.position_offset)
        return x if self.embed_norm is None else self.embed_norm(x)

    def share(
        self,
        x: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        segments: Tensor | Texts | None,
        past: Past | None,
        cache: Cache | None,
    ) -> tuple[Tensor, Shared]:
        """Positions (B, T), and what follows from them and the masks, once for all layers."""
        config, (B, T, _) = self.config, x.shape
        before = cache.length if cache is not None else 0
        if segments is not None and cache is not None:
            raise ConfigError("model: segments and a cache do not go together")
        if cache is not None and not config.causal:
            raise ConfigError(f"model: {config.family} looks both ways, which no cache can serve")
        if isinstance(segments, Texts) and mask is not None:
            raise ConfigError("model: a row of Texts and a mask do not go together")
        keep = None if mask is None or bool(mask.all()) else mask.bool()  # (B, T)
        counted = torch.zeros(B, 1, dtype=torch.long, device=x.device)
        P = 0 if past is None else past[0][0].shape[2]
        texts: Texts | None = None
        if isinstance(segments, Texts):
            texts, segments = segments, segments.segments
        elif segments is not None and B == 1 and keep is None and self.knows_texts(x, P):
            texts = Texts.of(segments)
        columns = keep  # (B, S): which keys are real
        if cache is not None:
            columns, counted = cache.mark(keep, T)
        elif config.causal and keep is not None and P == 0 and right_padded(keep):
            columns = None  # no real query looks that far
        last = None
        if positions is None:
            positions = P + counted + count(keep, segments, B, T, x.device)
            last = P + (before + T if texts is None else texts.longest) - 1
            if texts is None and last >= config.context:
                last = None  # with padding: without it perhaps not
        positions = positions.expand(B, T)
        packing = None
        if texts is not None:
            every = [self.reaches(texts, x, P)]
        elif segments is not None and choice.fused():
            packing = Packing(segments, keep)
            if not packing.bundles:
                raise ConfigError("model: found segments and no position that is real")
            every = [
                self.sights(None if config.causal else bundle.real, None, bundle.length, 0, P)
                for bundle in packing.bundles
            ]
        else:
            every = [self.sights(columns, segments, T, before, P)]
        wholes, locals_ = zip(*every, strict=True)
        whole = View(self.rotary(positions, x.dtype, False), wholes)
        local = whole
        if any(config.local):
            local = View(self.rotary(positions, x.dtype, True), locals_)
        return positions, Shared(whole, local, cache, past, packing, last)

    def knows_texts(self, x: Tensor, P: int) -> bool:
        """Whether a kernel that is told where texts end takes this model's attention to x."""
        config = self.config
        plain = config.causal and P == 0 and config.attention_cap is None and choice.fused()
        return plain and suits(x.dtype, x.device, config.head_dim)

    def reaches(self, texts: Texts, x: Tensor, P: int) -> tuple[Sight, Sight]:
        """`sights` of one row of texts: by a kernel that knows them, or by a mask."""
        config = self.config
        if not self.knows_texts(x, P):
            return self.sights(None, texts.segments, x.shape[1], 0, P)
        whole = Sight(None, True, texts)
        if not any(config.local) or config.window is None:
            return whole, whole
        return whole, Sight(None, True, replace(texts, window=config.window))

    def sights(
        self, columns: Tensor | None, segments: Tensor | None, T: int, before: int, P: int
    ) -> tuple[Sight, Sight]:
        """Where T queries look after `before` columns of a cache and P of `past`.

        In layers that see all of a row, and in those with a window.
        """
        config, device = self.config, self.embed.weight.device
        whole, local = None, None
        behind = config.causal and bool(P or (before and T > 1))
        if columns is not None or segments is not None or behind:
            whole = look(columns, segments, T, before, P, config.causal, None, device)
        if any(config.local) and config.window is not None and P + before + T > config.window:
            local = look(columns, segments, T, before, P, config.causal, config.window, device)
        return tuple(  # type: ignore[return-value]
            Sight(visible, visible is None and T > 1 and config.causal)
            for visible in (whole, whole if local is None else local)
        )

    def rotary(self, positions: Tensor, dtype: torch.dtype, local: bool) -> Any:
        """cos and sin of the layers' angles; None where positions are learned."""
        config = self.config
        if config.positions != "rope":
            return None
        scaling = config.rope_scaling
        if scaling is not None and scaling.kind == "dynamic":
            freq = frequencies(config, local=local, length=int(positions.max()) + 1)
        else:
            freq = frequencies_on(positions.device, config, local)
        gain = 1.0 if scaling is None or (local and config.local_rope_base) else scaling.gain
        return rotary_table(freq, positions, dtype, gain)


def make_head(config: ModelConfig) -> nn.Module | None:
    match config.head:
        case "lm":
            return nn.Linear(config.dim, config.vocab, bias=False)
        case "mlm":
            return MaskedLMHead(config)
        case "label":
            return LabelHead(config)
    return None


def few(wanted: Tensor, positions: int) -> bool:
    """Whether so few positions are wanted that the last block had better know."""
    count = int(wanted.sum()) if wanted.dtype == torch.bool else len(wanted)
    return count <= FEW * positions
