"""The transformer, whole: embedding, blocks of attention and MLP, final norm, head.

Sizes, here and in every file:
    B batch · T query positions · S key positions · D model width · H query heads · K kv heads
    E head width · F mlp width · V vocab · R rank · P prompt length · N selected positions
    C classes, or any number of channels

A fine-tuning method changes the model from outside, through these seams only (extension.py has
their types):
  - a `Projections` group: `group.changes[name]` is called instead of one of its Linears;
    `group.together` (and an MLP's) may compute all of them at once, or return None;
  - a sublayer (`Attention`, `MLP`): `sublayer.change` is called instead of `branch`, for what it
    adds to the residual stream;
  - `embeds` in place of `tokens`; `past`, keys and values that every position attends to;
  - `hidden_only`, the hidden states before the head; and torch's hooks on the model itself, its
    norms, and the modules `embed` and `head`. Whoever hooks the model is in `model.extensions`.
If few positions are `selected`, the last block's x holds only them, (1, N, D): so a change must
accept any (B, T, D). Parameter names never change, whatever is attached.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minift.errors import ConfigError
from minift.kernels.activations import ACTIVATIONS
from minift.kernels.attention.dispatch import attend
from minift.kernels.attention.packed import PackedSequences
from minift.kernels.cross_entropy.dispatch import linear_cross_entropy, token_logprobs
from minift.kernels.rope.dispatch import rotate_both
from minift.model.attention_mask import (
    AttentionMask,
    Cache,
    ForwardContext,
    Past,
    SelectedPositions,
    forward_context,
    selected_positions,
)
from minift.model.config import ModelConfig
from minift.model.extension import Extension, FusedGroup, FusedMLP, checkpoint_contexts
from minift.model.heads import LabelHead, MaskedLMHead
from minift.model.norm import make_norm

FEW = 0.9  # of all positions: if more are selected, gathering them early saves nothing


class Projections(nn.Module):
    """The Linears that read one input, applied together: x (B, T, in) -> a tuple of (B, T, out)."""

    def __init__(self, inputs: int, outputs: dict[str, int], bias: bool):
        super().__init__()
        self.members = tuple(outputs)
        for name, width in outputs.items():
            self.add_module(name, nn.Linear(inputs, width, bias=bias))
        self.changes = nn.ModuleDict()  # member name -> module called as change(linear, x)
        self.together: FusedGroup | None = None

    def forward(self, x: Tensor, only: tuple[str, ...] = ()) -> tuple[Tensor, ...]:
        """The outputs of all members, or of those in `only`."""
        names = only or self.members
        found = None if self.together is None else self.together(self, names, x)
        return tuple(self.project(name, x) for name in names) if found is None else found

    def project(self, name: str, x: Tensor) -> Tensor:
        linear = self.get_submodule(name)
        return self.changes[name](linear, x) if name in self.changes else linear(x)


class Attention(nn.Module):
    """Self-attention with grouped keys and values. Ainslie et al. 2023, arXiv:2305.13245."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.local = bool(config.local) and config.local[layer]
        self.scale, self.softcap = config.attention_scale, config.attention_softcap
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.norm = make_norm(config)
        self.after = make_norm(config) if config.norm_at == "sandwich" else None
        self.qkv = Projections(config.dim, {"q": q, "k": kv, "v": kv}, bias=config.qkv_bias)
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.out = Projections(q, {"o": config.dim}, bias=config.out_bias)
        self.post = config.norm_at == "post"
        self.change: nn.Module | None = None  # called as change(self, x, context)

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        return residual(self, x, context)

    def inner(self, x: Tensor, context: ForwardContext) -> Tensor:
        layer, selected = context.layer(self.local), context.selected
        if selected is None:
            q, k, v = self.qkv(x)  # (B, T, H E), (B, T, K E), (B, T, K E)
        else:
            stream = selected.stream if self.post else self.norm(selected.stream)  # (B, T, D)
            (q,), (k, v) = self.qkv(x, ("q",)), self.qkv(stream, ("k", "v"))
            q = selected.scatter(q)  # (B, T, H E)
        B, T, _ = q.shape
        q, k, v = (p.view(B, T, -1, self.head_dim).transpose(1, 2) for p in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)  # over the channels of each head
        if layer.rotary is not None:
            q, k = rotate_both(q, k, *layer.rotary)  # (B, H, T, E), (B, K, T, E)
        if context.cache is not None:
            k, v = context.cache.write(self.layer, k, v)  # (B, K, S, E)
            q = q.to(k.dtype)  # a cache may have a wider dtype than the model
        past = None if context.past is None else context.past[self.layer]
        if context.buckets is None:
            y = self.attend(q, k, v, past, layer.masks[0])  # (B, H, T, E)
        else:
            unpack, repack = context.buckets.unpack, context.buckets.repack
            parts = zip(unpack(q), unpack(k), unpack(v), layer.masks, strict=True)
            y = repack([self.attend(q, k, v, past, mask) for q, k, v, mask in parts])
        y = y.transpose(1, 2).reshape(B, T, -1).to(x.dtype)  # (B, T, H E)
        return self.out(y if selected is None else selected.gather(y))[0]  # (B or 1, T or N, D)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, past: tuple[Tensor, Tensor] | None, m: AttentionMask
    ) -> Tensor:
        """(B, H, T, E) from q of that shape, and k, v (B, K, S, E) after the keys of `past`."""
        if past is not None:
            k, v = (
                torch.cat((before.to(x.dtype).expand(len(x), -1, -1, -1), x), dim=2)
                for before, x in zip(past, (k, v), strict=True)
            )  # (B, K, P + S, E)
        return attend(q, k, v, m.mask, m.causal, self.scale, self.softcap, m.packed)


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
        self.change: nn.Module | None = None  # called as change(self, x, context)
        self.together: FusedMLP | None = None

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        return residual(self, x, context)

    def inner(self, x: Tensor, context: ForwardContext) -> Tensor:
        found = None if self.together is None else self.together(self, x)
        if found is not None:
            return found
        first, *gated = self.hidden(x)  # (B, T, F) each: gate and up, or up alone
        h = self.act(first)  # (B, T, F)
        return self.out(h * gated[0] if gated else h)[0]  # (B, T, D)


def residual(sublayer: Attention | MLP, x: Tensor, context: ForwardContext) -> Tensor:
    """The residual stream after one sublayer.

    pre       x + inner(norm(x))            sandwich  x + after(inner(norm(x)))
    post      norm(x + inner(x))            parallel  see Block
    """
    y = x + added(sublayer, x, context)  # (B, T, D)
    return sublayer.norm(y) if sublayer.post else y


def added(sublayer: Attention | MLP, x: Tensor, context: ForwardContext) -> Tensor:
    """What a sublayer, or its change, adds to the residual stream."""
    if sublayer.change is not None:
        return sublayer.change(sublayer, x, context)
    return branch(sublayer, x, context)


def branch(sublayer: Attention | MLP, x: Tensor, context: ForwardContext) -> Tensor:
    """What the sublayer itself adds."""
    y = sublayer.inner(x if sublayer.post else sublayer.norm(x), context)  # (B, T, D)
    return y if sublayer.after is None else sublayer.after(y)


class Block(nn.Module):
    """One layer: attention, then the MLP; or both on the same input, their outputs added."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.parallel = config.norm_at == "parallel"

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        if not self.parallel:
            return self.mlp(self.attn(x, context), context)
        return self.attn(x, context) + added(self.mlp, x, context)


class Transformer(nn.Module):
    """Tokens in, logits out. `source` is the name or path that the weights came from."""

    def __init__(self, config: ModelConfig, source: str = ""):
        super().__init__()
        self.config, self.source = config, source
        self.text_format: Any = None  # how the texts of its training were made
        self.embed = nn.Embedding(config.vocab, config.dim)
        rows = config.context + config.position_offset
        # Position and token type embeddings; their names are those of the parameters.
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
        # A plain list: their modules are registered elsewhere.
        self.extensions: list[Extension] = []

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
        segments: Tensor | PackedSequences | None = None,
        token_types: Tensor | None = None,
        past: Past | None = None,
        cache: Cache | None = None,
        hidden_only: bool = False,
        selected: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V); class scores (B, C) with a label head; hidden states without a head.

        tokens       (B, T) int64; or
        embeds       (B, T, D), which enter after scaling, before positions, token types and norm
        positions    (B, T); by default they count the real tokens of a row (of a segment, where
                     segments are given) from 0, after the P keys of `past` and the cached columns
        mask         (B, T), True where a token is real; padding may be on either side
        segments     (B, T): a position attends to its own segment only. As PackedSequences, B = 1,
                     no operation depends on where the sequences end
        token_types  (B, T), by default 0
        past         keys and values that every position attends to, read-only
        cache        is written, and read by the next call
        hidden_only  return the last hidden states (B, T, D), after the final norm if there is one
        selected     (N,) int64, which of the B T positions, or (B, T) bool, N times True: return
                     (N, D) or (N, V), in that order. The last block computes only what these need
        """
        if (tokens is None) == (embeds is None):
            raise ConfigError("model: give either tokens or embeds")
        if tokens is not None:
            x = self.embed_tokens(tokens)  # (B, T, D)
        elif embeds is not None:
            x = embeds.to(self.embed.weight.dtype)
        B, T, _ = x.shape
        if selected is not None:
            selected = selected_positions(selected, B, T)  # (N,)
        if isinstance(self.head, LabelHead) and not hidden_only:
            if selected is not None:
                raise ConfigError("model: a label head selects its own position, found selected")
            selected = self.head.select(mask, B, T, x.device)  # (B,)
        context = forward_context(self.config, x, positions, mask, segments, past, cache)
        x = self.embed_positions(x, context, token_types)
        for block in self.blocks:
            if block is self.blocks[-1] and selected is not None and len(selected) <= FEW * B * T:
                context = replace(context, selected=SelectedPositions(x, selected))
                x = x.flatten(0, 1).index_select(0, selected)[None]  # (1, N, D)
            if self.checkpointing and torch.is_grad_enabled():
                contexts = partial(checkpoint_contexts, self.extensions)
                x = checkpoint(block, x, context, use_reentrant=False, context_fn=contexts)
            else:
                x = block(x, context)
        if cache is not None:
            cache.advance(T)
        if context.selected is not None:
            x = x[0]  # (N, D)
        elif selected is not None:
            x = x.flatten(0, 1).index_select(0, selected)  # (N, D)
        if self.norm is not None:
            x = self.norm(x)  # (B, T, D), or (N, D)
        if hidden_only or self.head is None:
            return x
        if isinstance(self.head, LabelHead):
            return self.head(x, self.pooler)  # (B, C)
        return self.logits(x)  # (B, T, V), or (N, V)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(B, T) -> (B, T, D), scaled if the family scales."""
        x = self.embed(tokens)
        scale = self.config.embed_scale
        # The factor is rounded to the weights' dtype first, as in the models' own training.
        return x if scale == 1 else x * torch.full((), scale, dtype=x.dtype, device=x.device)

    def embed_positions(
        self, x: Tensor, context: ForwardContext, token_types: Tensor | None
    ) -> Tensor:
        """x (B, T, D) plus learned positions and token types, normed, where the family has them."""
        position_embedding, token_type_embedding = self.places, self.types
        if token_type_embedding is not None:
            kinds = torch.zeros_like(context.positions) if token_types is None else token_types
            x = x + token_type_embedding(kinds)
        elif token_types is not None:
            raise ConfigError(f"model: family {self.config.family} has no token types")
        if position_embedding is not None:
            last = context.max_position
            last = int(context.positions.max()) if last is None else last
            if last >= self.config.context:
                raise ConfigError(
                    f"model: position {last:,} is beyond the context, "
                    f"{self.config.context:,} positions"
                )
            x = x + position_embedding(context.positions + self.config.position_offset)
        return x if self.embed_norm is None else self.embed_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the vocabulary (..., V) from last hidden states (..., D)."""
        if self.head is None or isinstance(self.head, LabelHead):
            raise ConfigError(f"model: {self.source or self.config.family} has no language head")
        return self.softcap(self.head(hidden))

    def softcap(self, scores: Tensor) -> Tensor:
        """Scores, bounded if the family bounds them."""
        c = self.config.logit_softcap
        return scores if c is None else torch.tanh(scores / c) * c

    def nll(self, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
        """Sum of the negative log-probabilities of targets (N,), in nats, from hidden (N, D).

        weights (N,): a factor for each target.
        """
        c = self.config.logit_softcap
        return linear_cross_entropy(hidden, self.head, self.logits, targets, c, weights)

    def logprobs(
        self, hidden: Tensor, targets: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """log p(target) (N,) and the entropy (N,), in nats, from hidden (N, D), targets (N,).

        Both are those of the distribution that sampling at this temperature draws from, and both
        are differentiable, row by row.
        """
        c = self.config.logit_softcap
        return token_logprobs(hidden, self.head, self.logits, targets, c, temperature)


def make_head(config: ModelConfig) -> nn.Module | None:
    match config.head:
        case "lm":
            return nn.Linear(config.dim, config.vocab, bias=False)
        case "mlm":
            return MaskedLMHead(config)
        case "label":
            return LabelHead(config)
    return None
