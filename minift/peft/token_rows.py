"""Rows of the token table that an adapter trains whole: what new, rare or special tokens mean.

    W[t] = r_t      for the ids t that are named; every other row is the base's

The rows replace those of the table, and of the head where the two are one matrix; a head of its own
has rows of its own. They are saved with the adapter (PEFT's `trainable_token_indices`), so a token
that the base hardly knows costs dim numbers and not a second table.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minift.errors import ConfigError, one_line
from minift.model.heads import MaskedLMHead
from minift.model.transformer import Transformer
from minift.peft.slots import WHOLE, insert


class TableRows(nn.Module):
    """Asked after the token table."""

    place: Tensor

    def __init__(self, table: nn.Embedding | nn.Linear, tokens: tuple[int, ...], derived: bool):
        super().__init__()
        self.tokens, self.derived = tokens, derived
        weight: Tensor = table.weight.detach()
        precise = torch.promote_types(weight.dtype, torch.float32)
        self.rows = nn.Parameter(weight[list(tokens)].to(precise))  # (N, D)
        place = torch.full((len(weight),), -1, device=weight.device)
        place[list(tokens)] = torch.arange(len(tokens), device=weight.device)
        self.register_buffer("place", place, persistent=False)  # (V,) which row, -1 for none

    def forward(self, table: nn.Embedding, tokens: Tensor, out: Tensor) -> Tensor:
        at = self.place[tokens]  # (B, T)
        own = F.embedding(at.clamp(min=0), self.rows).to(out.dtype)
        return torch.where((at >= 0)[..., None], own, out)

    def merged(self, table: nn.Module) -> dict[str, Tensor]:
        weight = table.get_parameter("weight").detach()
        at = torch.tensor(self.tokens, device=weight.device)
        return {"weight": weight.index_copy(0, at, self.rows.detach().to(weight.dtype))}


class HeadRows(TableRows):
    """Asked after the head: `table` is given where its rows are the table's too."""

    def __init__(
        self, head: nn.Linear, tokens: tuple[int, ...], derived: bool, table: TableRows | None
    ):
        super().__init__(head, tokens, derived)
        self.tied = table is not None  # then the files have it as the table's
        if table is not None:
            self.rows = table.rows

    def forward(self, head: nn.Linear, x: Tensor, out: Tensor) -> Tensor:  # type: ignore[override]
        at = torch.tensor(self.tokens, device=x.device)
        scores = F.linear(x.to(self.rows.dtype), self.rows)  # (..., N)
        if head.bias is not None:
            scores = scores + head.bias[at]
        return out.index_copy(-1, at, scores.to(out.dtype))


def check(tokens: tuple[int, ...], where: tuple[str, ...], targets: tuple[str, ...]) -> None:
    """Refuse what no model could have."""
    if any(type(t) is not int or t < 0 for t in tokens) or len({*tokens}) < len(tokens):
        raise ConfigError(f"tokens: found {one_line(tokens)}, allowed different ids from 0")
    if not where or not {*where} <= {*WHOLE}:
        allowed = "embed, head or both"
        raise ConfigError(f"token_rows: found {','.join(where) or 'none'}, allowed {allowed}")
    if tokens and {*WHOLE} & {*targets}:
        raise ConfigError("tokens: found with embed or head among the targets, allowed one of both")


def target_modules(
    model: Transformer, tokens: tuple[int, ...], where: tuple[str, ...]
) -> Iterator[tuple[str, nn.Embedding | nn.Linear]]:
    """Where the rows stand: (path, module). Tied to it, the head goes with the table."""
    if not tokens:
        return
    if max(tokens) >= model.config.vocab:
        raise ConfigError(f"tokens: found {max(tokens)}, allowed ids below {model.config.vocab:,}")
    tied = model.config.tied
    if tied and "embed" not in where:
        raise ConfigError("token_rows: found head, allowed embed: this model's are one matrix")
    if "embed" in where:
        yield "embed", model.embed
    if tied or "head" in where:
        if isinstance(model.head, nn.Linear):
            yield "head", model.head
        elif isinstance(model.head, MaskedLMHead):
            yield "head.decoder", model.head.decoder
        elif "embed" not in where:
            raise ConfigError("token_rows: found head, allowed embed: this model scores no words")


def count(model: Transformer, tokens: tuple[int, ...], where: tuple[str, ...]) -> int:
    tables = len(list(target_modules(model, tokens, where)))
    return len(tokens) * model.config.dim * (min(tables, 1) if model.config.tied else tables)


def attach(
    model: Transformer, tokens: tuple[int, ...], where: tuple[str, ...], name: str, derived: bool
) -> None:
    """`derived`: the training state holds the rows too, beside what they travel with."""
    table: TableRows | None = None
    for path, module in target_modules(model, tokens, where):
        if isinstance(module, nn.Embedding):
            table = TableRows(module, tokens, derived)
            insert(model, path, name, table)
        else:
            twin = table if model.config.tied else None
            insert(model, path, name, HeadRows(module, tokens, derived, twin))


def table_of(path: str) -> str:
    """The word of `where` for a path: a masked-LM head keeps its matrix one level down."""
    return path.removesuffix(".decoder")
