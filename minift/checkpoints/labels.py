"""A model with a head for labels, from one that has another head or none.

    scores = out(act(pooler(h_first)))    encoders, where the checkpoint has a pooler
    scores = out(h_first)                 encoders without one
    scores = out(h_last)                  decoders: the last real token has seen the whole text

What follows from the family (the position that is read, the bias, a dense layer that its classifier
keeps for itself) is a row of families.py, so that other programs have a class for the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from minift.checkpoints.families import FAMILIES
from minift.checkpoints.mapping import pairs
from minift.checkpoints.save import is_changed
from minift.errors import ConfigError
from minift.kernels.quantized.linear import quantized
from minift.model.config import ModelConfig
from minift.model.on_meta import on_meta
from minift.model.transformer import Transformer

SPREAD = 0.02  # of a new head's weights, as BERT's own were drawn; Devlin et al. 2019's code


def with_labels(model: Transformer, labels: Sequence[str], *, seed: int = 0) -> Transformer:
    """A new model whose output is (B, C), a score for each label; it shares the body's tensors.

    New weights are drawn in float32 from `seed`, whatever the body's dtype; new biases are zero. A
    model that has these very labels already is returned as it is, with its trained head.
    """
    names = checked(labels)
    if model.config.head == "label" and model.config.labels == names:
        return model
    if is_changed(model):
        raise ConfigError("with_labels: the model has an adapter attached; it comes after the head")
    config = labelled(model.config, names)
    new = on_meta(config, model.source)
    new.text_format = model.text_format
    for path, linear in quantized(model):
        new.set_submodule(path, linear.twin(linear.bias))
    body = {n: p for n, p in model.named_parameters() if not n.startswith("head.")}
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in list(new.named_parameters()):
        value = body.get(name)
        if value is None:
            start = torch.zeros(parameter.shape)
            if parameter.dim() == 2:
                start.normal_(0, SPREAD, generator=generator)
            value = nn.Parameter(start.to(model.embed.weight.device))
        path, _, leaf = name.rpartition(".")
        setattr(new.get_submodule(path), leaf, value)
    return new.train(model.training)


def checked(labels: Sequence[str]) -> tuple[str, ...]:
    names = tuple(labels)
    if isinstance(labels, str) or not names or not all(type(n) is str and n for n in names):
        raise ConfigError(f"labels: found {labels!r}, allowed a list of names")
    if len(set(names)) < len(names):
        raise ConfigError(f"labels: found {', '.join(names)}, allowed different names")
    return names


def labelled(config: ModelConfig, labels: tuple[str, ...]) -> ModelConfig:
    """The same body under a label head."""
    family = FAMILIES[config.family]
    if "label" not in family.heads.values():
        raise ConfigError(f"with_labels: {config.family} has no class for labels")
    wanted = replace(config, head="label", labels=labels, tied=False)
    return replace(wanted, pooler=wanted.pooler or pooler_inside(wanted))


def pooler_inside(config: ModelConfig) -> bool:
    """Whether the family's classifier has the dense layer inside of it, and is made with it: that
    of RoBERTa and DistilBERT."""
    family = FAMILIES[config.family]
    rows = pairs(family.folder, replace(config, pooler=True), family.prefix)
    return any(
        row.ours == ("pooler.weight",) and not row.theirs.startswith(family.prefix) for row in rows
    )
