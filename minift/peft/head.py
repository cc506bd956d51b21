"""A label head of an adapter's own: it is trained with the adapter, saved with it, and switched.

A model for classification has a head that the base never had, or had for other labels. Each adapter
gets a copy, which is asked instead of the base's: PEFT's `modules_to_save`. A dense layer that the
family keeps inside its classifier (RoBERTa's, DistilBERT's) belongs to the copy.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from minift.model.heads import LabelHead
from minift.model.transformer import Transformer
from minift.peft.slots import changes, insert

PATH = "head"


class OwnHead(nn.Module):
    """Asked after the base's head, whose answer it replaces."""

    def __init__(self, head: LabelHead, pooler: nn.Linear | None):
        super().__init__()
        precise = torch.promote_types(head.out.weight.dtype, torch.float32)
        self.head = copy.deepcopy(head).to(precise)
        self.pooler = copy.deepcopy(pooler).to(precise) if pooler is not None else None

    def forward(
        self, head: nn.Module, hidden: Tensor, pooler: nn.Linear | None, out: Tensor
    ) -> Tensor:
        dtype = self.head.out.weight.dtype
        if self.pooler is None and pooler is not None and pooler.weight.dtype != dtype:
            pooler = copy.deepcopy(pooler).to(dtype)
        return self.head(hidden.to(dtype), self.pooler or pooler)

    def merged(self, head: nn.Module) -> dict[str, Tensor]:
        """In the base's precision; `..pooler` is beside the head, not in it."""
        dtype = next(head.parameters()).dtype
        named = dict(self.head.named_parameters())
        if self.pooler is not None:
            named |= {f"..pooler.{leaf}": p for leaf, p in self.pooler.named_parameters()}
        return {name: tensor.detach().to(dtype) for name, tensor in named.items()}


def attach(model: Transformer, name: str) -> None:
    """Give the adapter a copy of the model's label head, if it has one."""
    if isinstance(model.head, LabelHead):
        from minift.checkpoints.labels import pooler_inside  # a family says so; others need none

        inside = model.config.pooler and pooler_inside(model.config)
        insert(model, PATH, name, OwnHead(model.head, model.pooler if inside else None))


def own_head(model: Transformer, name: str) -> OwnHead | None:
    found = {path: change for path, _, change in changes(model, name)}.get(PATH)
    return found if isinstance(found, OwnHead) else None
