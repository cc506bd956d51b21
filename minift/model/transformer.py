"""The transformer, whole: embedding, blocks of attention and MLP, final norm, head.

Sizes, here and in every file:
    B batch · T query positions · S key positions · D model width · H query heads · K kv heads
    E head width · F mlp width · V vocab · R rank · P prompt length

A fine-tuning method changes it from outside, through these seams and no others:
  - a `Projections` group: `group.changes[name]` replaces what one of its Linears computes;
  - a sublayer (`Attention`, `MLP`): `sublayer.change` replaces how it joins the residual stream;
  - `embeds` in place of `tokens`; `past`, keys and values that every position attends to;
  - `hidden_only`, the hidden states before the head; and the modules `embed` and `head` themselves.
Parameter names never change, whatever is attached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minift.errors import ConfigError
from minift.kernels.attention.dispatch import attend
from minift.model.config import ModelConfig
from minift.model.rope import frequencies, rotary_table, rotate

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
class Shared:
    """What all layers of one forward pass share."""

    rotary: tuple[Tensor, Tensor]
    visible: Tensor | None  # (B or 1, 1, T, S), True where a query may look; None: see `causal`
    causal: bool  # no mask needed beyond "not after me"
    cache: Cache | None
    past: Past | None


class Projections(nn.Module):
    """The Linears that read one input, applied together: x (B, T, in) -> a tuple of (B, T, out)."""

    def __init__(self, inputs: int, outputs: dict[str, int], bias: bool):
        super().__init__()
        self.members = tuple(outputs)
        for name, width in outputs.items():
            self.add_module(name, nn.Linear(inputs, width, bias=bias))
        self.changes = nn.ModuleDict()  # member name -> module called as change(linear, x)
        self.changed = True  # False: compute the plain Linears, whatever hangs here

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.project(name, x) for name in self.members)

    def project(self, name: str, x: Tensor) -> Tensor:
        linear = self.get_submodule(name)
        if self.changed and name in self.changes:
            return self.changes[name](linear, x)
        return linear(x)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the mean square in float32 or better. Zhang & Sennrich 2019, eq. 4."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)  # (B, T, 1)
        return (wide * scale).to(x.dtype) * self.weight


class Attention(nn.Module):
    """Causal self-attention with grouped keys and values. Ainslie et al. 2023, arXiv:2305.13245."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        q, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.qkv = Projections(config.dim, {"q": q, "k": kv, "v": kv}, bias=config.qkv_bias)
        self.out = Projections(q, {"o": config.dim}, bias=config.out_bias)
        self.change: nn.Module | None = None

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        return residual(self, x, shared)

    def inner(self, x: Tensor, shared: Shared) -> Tensor:
        B, T, _ = x.shape
        q, k, v = (p.view(B, T, -1, self.head_dim).transpose(1, 2) for p in self.qkv(x))
        q, k = rotate(q, shared.rotary), rotate(k, shared.rotary)  # (B, H, T, E), (B, K, T, E)
        if shared.cache is not None:
            k, v = shared.cache.write(self.layer, k, v)  # (B, K, S, E)
        if shared.past is not None:
            before_k, before_v = shared.past[self.layer]
            k = torch.cat((before_k.to(k.dtype).expand(B, -1, -1, -1), k), dim=2)
            v = torch.cat((before_v.to(v.dtype).expand(B, -1, -1, -1), v), dim=2)
        y = attend(q, k, v, shared.visible, shared.causal)  # (B, H, T, E)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))[0]  # (B, T, D)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Shazeer 2020, arXiv:2002.05202, eq. 6."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm = RMSNorm(config.dim, config.norm_eps)
        widths = {"gate": config.ff, "up": config.ff}
        self.hidden = Projections(config.dim, widths, bias=config.mlp_bias)
        self.out = Projections(config.ff, {"down": config.dim}, bias=config.mlp_bias)
        self.change: nn.Module | None = None

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        return residual(self, x, shared)

    def inner(self, x: Tensor, shared: Shared) -> Tensor:
        gate, up = self.hidden(x)  # (B, T, F) each
        return self.out(F.silu(gate) * up)[0]  # (B, T, D)


def residual(sublayer: Attention | MLP, x: Tensor, shared: Shared) -> Tensor:
    """The residual stream after one sublayer: x + inner(norm(x)), or what its change makes."""
    if sublayer.change is not None:
        return sublayer.change(sublayer, x, shared)
    return x + sublayer.inner(sublayer.norm(x), shared)  # (B, T, D)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, shared: Shared) -> Tensor:
        return self.mlp(self.attn(x, shared), shared)


class Transformer(nn.Module):
    """Tokens in, logits out. `source` is the name or path that the weights came from."""

    def __init__(self, config: ModelConfig, source: str = ""):
        super().__init__()
        self.config, self.source = config, source
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.head = nn.Linear(config.dim, config.vocab, bias=False)
        if config.tied:
            self.head.weight = self.embed.weight
        self.checkpointing = (
            False  # recompute each block in the backward pass instead of keeping it
        )

    def forward(
        self,
        tokens: Tensor | None = None,
        *,
        embeds: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        segments: Tensor | None = None,
        token_types: Tensor | None = None,
        past: Past | None = None,
        cache: Cache | None = None,
        hidden_only: bool = False,
    ) -> Tensor:
        """Logits (B, T, V), or with `hidden_only` the normed hidden states (B, T, D).

        tokens (B, T) int64, or embeds (B, T, D). mask (B, T): True where a position is real;
        padding may stand on either side. positions (B, T) count the real tokens of a row (of a
        segment, where segments are given) from 0, after P positions of `past` and whatever the
        cache holds. segments (B, T): a position sees its own segment only. past: read-only keys
        and values that every position sees. cache: written, and read by the next call.
        """
        if (tokens is None) == (embeds is None):
            raise ConfigError("model: give either tokens or embeds")
        if token_types is not None:
            raise ConfigError(f"model: family {self.config.family} has no token types")
        x = self.embed(tokens) if embeds is None else embeds.to(self.embed.weight.dtype)
        shared = self.share(x, positions, mask, segments, past, cache)
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, shared, use_reentrant=False)
            else:
                x = block(x, shared)
        if cache is not None:
            cache.advance(x.shape[1])
        x = self.norm(x)  # (B, T, D)
        return x if hidden_only else self.head(x)  # (B, T, V)

    def share(
        self,
        x: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        segments: Tensor | None,
        past: Past | None,
        cache: Cache | None,
    ) -> Shared:
        """Positions and masks, worked out once for all layers."""
        B, T, _ = x.shape
        before = cache.length if cache is not None else 0
        if segments is not None and cache is not None:
            raise ConfigError("model: segments and a cache do not go together")
        keep = None if mask is None or bool(mask.all()) else mask.bool()  # (B, T)
        counted = torch.zeros(B, 1, dtype=torch.long, device=x.device)
        P = 0 if past is None else past[0][0].shape[2]
        columns = keep  # (B, S): which keys are real
        if cache is not None:
            columns, counted = cache.mark(keep, T)
        elif keep is not None and P == 0 and not bool((keep[:, 1:] & ~keep[:, :-1]).any()):
            columns = None  # padded on the right: no real query looks that far
        if positions is None:
            positions = P + counted + count(keep, segments, B, T, x.device)
        visible = None
        if columns is not None or segments is not None or P or (before and T > 1):
            visible = look_back(columns, segments, T, before, P, x.device)
        rotary = rotary_table(frequencies(self.config), positions.expand(B, T), x.dtype)
        return Shared(rotary, visible, visible is None and T > 1, cache, past)


def count(
    keep: Tensor | None, segments: Tensor | None, B: int, T: int, device: torch.device
) -> Tensor:
    """Positions (B or 1, T): real tokens so far in the row, or in its segment; padding counts 0."""
    if keep is None and segments is None:
        return torch.arange(T, device=device)[None]
    real = torch.ones(B, T, dtype=torch.long, device=device) if keep is None else keep.long()
    seen = real.cumsum(1)  # (B, T)
    if segments is not None:
        first = torch.ones_like(segments, dtype=torch.bool)
        first[:, 1:] = segments[:, 1:] != segments[:, :-1]
        start = torch.where(first, seen - real, 0).cummax(1).values  # seen before my segment
        seen = seen - start
    return (seen - 1).clamp(min=0)


def look_back(
    columns: Tensor | None,
    segments: Tensor | None,
    T: int,
    before: int,
    P: int,
    device: torch.device,
) -> Tensor:
    """(B or 1, 1, T, P + before + T): True where a query may look.

    It looks back, at real keys, in its own segment, and always at `past`. A padded query sees
    itself, so that no row of the softmax is empty (NaN in the backward pass).
    """
    S = before + T
    column, row = torch.arange(S, device=device), torch.arange(before, S, device=device)[:, None]
    visible = (column <= row)[None]  # (1, T, S)
    if columns is not None:
        visible = (visible & columns[:, None, :]) | (column == row)
    if segments is not None:
        visible = visible & (segments[:, :, None] == segments[:, None, :])
    if P:
        visible = torch.cat((visible.new_ones(visible.shape[0], T, P), visible), dim=2)
    return visible[:, None]  # (B or 1, 1, T, P + S)
