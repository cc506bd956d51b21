"""What the methods share: finding linears, hanging a change on one, switching off, merging.

Attaching freezes everything else; what a method creates is trainable by construction, so
"trainable" means `requires_grad` and nothing is ever found by its name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.model.transformer import Projections, Transformer

GROUPS = {
    "attention": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
    "all": ("q", "k", "v", "o", "gate", "up", "down"),
}


def groups(model: Transformer) -> Iterator[tuple[str, Projections]]:
    """Every projection group with its path, in the order of the model."""
    for path, module in model.named_modules():
        if isinstance(module, Projections):
            yield path, module


def members(model: Transformer, targets: tuple[str, ...]) -> Iterator[tuple[str, nn.Linear]]:
    """The linears that `targets` names, as (`blocks.0.attn.qkv.q`, linear).

    A target is a word of GROUPS or a member's name. One that the model does not have is refused.
    """
    wanted = {name for target in targets for name in GROUPS.get(target, (target,))}
    there = {name for _, group in groups(model) for name in group.members}
    for name in sorted(wanted - there):
        choices = [*GROUPS, *sorted(there)]
        near = difflib.get_close_matches(name, choices, 1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ConfigError(f'targets: found "{name}", allowed {", ".join(choices)}{hint}')
    for path, group in groups(model):
        for name in group.members:
            if name in wanted:
                linear = group.get_submodule(name)
                assert isinstance(linear, nn.Linear)
                yield f"{path}.{name}", linear


def changes(model: Transformer) -> Iterator[tuple[str, nn.Linear, nn.Module]]:
    """Every change that hangs on a linear: (path of the linear, the linear, the change)."""
    for path, group in groups(model):
        for name, change in group.changes.items():
            linear = group.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            yield f"{path}.{name}", linear, change


def hang(model: Transformer, path: str, change: nn.Module) -> None:
    """Let `change` decide what the linear at `path` computes."""
    group, _, name = path.rpartition(".")
    module = model.get_submodule(group)
    assert isinstance(module, Projections)
    if name in module.changes:
        raise ConfigError(f"attach: {path} has a change already")
    module.changes[name] = change


def freeze(model: Transformer) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def disabled(model: Transformer) -> Iterator[Transformer]:
    """Inside, the model is the base, bit for bit: no change is called."""
    found = [(group, group.changed) for _, group in groups(model)]
    try:
        for group, _ in found:
            group.changed = False
        yield model
    finally:
        for group, before in found:
            group.changed = before


def merge(model: Transformer) -> Transformer:
    """A plain new model with every change folded into its weight; the adapted one stays as it was.

    Each sum is computed in float32 (or the change's precision) and rounded once. Tensors without a
    change are shared with the original. `merge_error` says what rounding cost.
    """
    found = {path: (linear, change) for path, linear, change in changes(model)}
    if not found:
        raise ConfigError("merge: nothing is attached to the model")
    for path, (_, change) in found.items():
        if not hasattr(change, "merged"):
            raise ConfigError(f"merge: {type(change).__name__} at {path} cannot become a weight")
    with torch.device("meta"):
        plain = Transformer(model.config, model.source)
    source = dict(model.named_parameters())
    for name, _ in list(plain.named_parameters()):
        path, _, leaf = name.rpartition(".")
        value = source[name].detach()
        if leaf == "weight" and path in found:
            linear, change = found[path]
            with torch.no_grad():
                value = change.merged(linear)  # type: ignore[operator]
        setattr(plain.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))
    if model.config.tied:
        plain.tie()
    return plain.train(model.training)


@dataclass(frozen=True)
class MergeError:
    """How far the merged model is from the adapted one, on some text."""

    logit: float  # largest difference of a logit
    kl: float  # mean KL(adapted ‖ merged) in nats a token
    tokens: int


@torch.no_grad()
def merge_error(adapted: Transformer, merged: Transformer, tokens: Tensor) -> MergeError:
    """Both models on the same tokens (B, T)."""
    was = adapted.training
    adapted.eval()
    merged.eval()
    one, other = adapted(tokens).float(), merged(tokens).float()  # (B, T, V)
    adapted.train(was)
    logp, logq = one.log_softmax(-1), other.log_softmax(-1)
    kl = (logp.exp() * (logp - logq)).sum(-1).mean()
    return MergeError(float((one - other).abs().max()), max(0.0, float(kl)), tokens.numel())
