"""Virtual tokens: what prompt tuning and P-tuning put before every text.

The model reads P learned vectors, then the text: [P][padding][text] in a batch that is padded on
the left, as PEFT does. Masks and positions count them as real tokens; they are cut off the output
again. With a cache they are written by the first call and are then past. An encoder's label head
that reads the first position reads the first of them, as PEFT's does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.model.transformer import Transformer


class Virtual(nn.Module):
    """A part whose `vectors()` stand before every text."""

    STAYS = "its tokens are input, not weights"

    def __init__(self) -> None:
        super().__init__()
        self.added = 0  # virtual tokens in the forward pass at hand

    def vectors(self) -> Tensor:
        """(P, D), entering where the embeddings of tokens do."""
        raise NotImplementedError

    def before(self, model: Transformer, given: dict[str, Any]) -> dict[str, Any]:
        self.added = 0
        cache = given.get("cache")
        if cache is not None and cache.length:
            return given
        for key in ("segments", "positions"):
            if given.get(key) is not None:
                raise ConfigError(f"model: {key} and virtual tokens do not go together")
        embeds = given.get("embeds")
        x = model.embed_tokens(given["tokens"]) if embeds is None else embeds  # (B, T, D)
        first = self.vectors().to(x.dtype)  # (P, D)
        (B, T, _), P = x.shape, first.shape[0]
        room(model, P, T)
        changed = {"tokens": None, "embeds": torch.cat((first.expand(B, -1, -1), x), dim=1)}
        mask, types = given.get("mask"), given.get("token_types")
        if mask is not None:
            changed["mask"] = torch.cat((mask.new_ones(B, P), mask), dim=1)
        if types is not None:
            changed["token_types"] = torch.cat((types.new_zeros(B, P), types), dim=1)
        if cache is not None:
            cache.reserve(P)
        self.added = P
        return given | changed

    def after(self, out: Tensor) -> Tensor | None:
        """(B, P + T, ...) -> (B, T, ...); a label head's (B, C) stays as it is."""
        return out[:, self.added :] if self.added and out.dim() == 3 else None


def room(model: Transformer, P: int, T: int) -> None:
    most = model.config.context
    if most < P + T:
        raise ConfigError(
            f"model: {P} virtual tokens and {T} tokens exceed the context of {most:,}"
        )
