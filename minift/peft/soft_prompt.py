"""Virtual tokens: what prompt tuning and P-tuning put before every text.

The model reads P learned vectors, then the text: [P][padding][text] in a batch that is padded on
the left, as PEFT does. Masks and positions count them as real tokens; they are cut off the output
again. With a cache they are written by the first call and are then past. In packed rows they stand
before every text. An encoder's label head that reads the first position reads the first of them, as
PEFT's does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.kernels.attention.packed import MoveRows
from minift.model.attention_mask import pack, selected_positions
from minift.model.transformer import Transformer


class SoftPrompt(nn.Module):
    """A part whose `vectors()` stand before every text."""

    NOT_MERGEABLE = "its tokens are input, not weights"

    def __init__(self) -> None:
        super().__init__()
        self.added = 0  # virtual tokens in the forward pass at hand
        # Of packed rows: where its tokens stand, where they stood in (B, T), and B, T.
        self.moved: tuple[Tensor, Tensor, int, int] | None = None

    def vectors(self) -> Tensor:
        """(P, D), entering where the embeddings of tokens do."""
        raise NotImplementedError

    @property
    def positions(self) -> int:
        """Positions that it takes of the context."""
        return len(self.vectors())

    def before(self, model: Transformer, given: dict[str, Any]) -> dict[str, Any]:
        self.added, self.moved = 0, None
        cache = given.get("cache")
        if cache is not None and cache.length:
            return given
        if given.get("positions") is not None:
            raise ConfigError("model: positions and virtual tokens do not go together")
        embeds = given.get("embeds")
        x = model.embed_tokens(given["tokens"]) if embeds is None else embeds  # (B, T, D)
        first = self.vectors().to(x.dtype)  # (P, D)
        if given.get("segments") is not None and cache is None:
            return given | self.packed(model, given, x, first)
        (B, T, _), P = x.shape, first.shape[0]
        check_context(model, P, T)
        changed = {"tokens": None, "embeds": torch.cat((first.expand(B, -1, -1), x), dim=1)}
        mask, types, selected = (given.get(key) for key in ("mask", "token_types", "selected"))
        if mask is not None:
            changed["mask"] = torch.cat((mask.new_ones(B, P), mask), dim=1)
        if selected is not None:
            at = selected_positions(selected, B, T)  # (N,)
            changed["selected"] = at + (at // T + 1) * P  # P virtual tokens before every row's text
        if types is not None:
            changed["token_types"] = torch.cat((types.new_zeros(B, P), types), dim=1)
        if cache is not None:
            cache.reserve(P)
        self.added = P
        return given | changed

    def packed(
        self, model: Transformer, given: dict[str, Any], x: Tensor, first: Tensor
    ) -> dict[str, Any]:
        """All texts of the batch behind each other in one row, each after its virtual tokens."""
        sequences = pack(given["segments"], given.get("mask"))
        if sequences.bounds is None:
            raise ConfigError("model: PackedSequences and virtual tokens do not go together")
        starts, lengths = sequences.bounds
        (B, T, _), P, n = x.shape, first.shape[0], len(lengths)
        check_context(model, P, sequences.max_seqlen)
        text = torch.arange(n).repeat_interleave(torch.from_numpy(lengths + P))  # (N,)
        place = torch.arange(len(text)) - torch.from_numpy(np.cumsum(lengths + P) - lengths)[text]
        real = place >= 0  # place in its text; virtual tokens stand before 0
        taken = (torch.from_numpy(starts)[text] + place)[real]  # of B T
        source = torch.where(real, 0, place + P)  # of [virtual tokens; tokens]
        source[real] = P + taken
        source, taken = source.to(x.device), taken.to(x.device)
        self.moved = (real.nonzero()[:, 0].to(x.device), taken, B, T)
        changed: dict[str, Any] = {
            "tokens": None,
            # TRAP: not [source], whose gradient threads add up in no fixed order.
            "embeds": torch.cat((first, x.flatten(0, 1))).index_select(0, source)[None],
            "segments": text[None].to(x.device),
            "mask": None,
        }
        if given.get("token_types") is not None:
            types = given["token_types"]
            changed["token_types"] = torch.cat((types.new_zeros(P), types.flatten()))[source][None]
        if given.get("selected") is not None:
            at = torch.full((B * T,), -1, device=x.device)  # no place for padding
            at[taken] = self.moved[0]
            changed["selected"] = at[selected_positions(given["selected"], B, T)]  # (N,)
        return changed

    def after(self, out: Tensor) -> Tensor | None:
        """(B, P + T, ...) -> (B, T, ...); selected rows and (B, C) stay."""
        if self.moved is not None and out.dim() == 3:
            at, taken, B, T = self.moved
            back: Tensor = MoveRows.apply(out[0], at, taken, B * T)
            return back.view(B, T, -1)
        return out[:, self.added :] if self.added and out.dim() == 3 else None


def check_context(model: Transformer, P: int, T: int) -> None:
    most = model.config.context
    if most < P + T:
        raise ConfigError(
            f"model: {P} virtual tokens and {T} tokens exceed the context of {most:,}"
        )


@torch.no_grad()
def init_uniform(module: nn.Module, generator: torch.Generator) -> None:
    """torch's own initialisation of linears and LSTMs, from our generator."""
    for owner in module.modules():
        if isinstance(owner, nn.LSTM | nn.Linear):
            width = owner.hidden_size if isinstance(owner, nn.LSTM) else owner.in_features
            for parameter in owner.parameters():
                parameter.uniform_(-(width**-0.5), width**-0.5, generator=generator)
