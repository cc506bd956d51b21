"""The registry: a method's config decides which file attaches it."""

from __future__ import annotations

from minift.errors import ConfigError
from minift.model.transformer import Transformer
from minift.peft import lora
from minift.peft.attach import changes, freeze

METHODS = {lora.LoRA: lora}


def attach(model: Transformer, config: lora.LoRA, *, seed: int = 0) -> Transformer:
    """Freeze the model and attach a method to it, in place; returns the model."""
    if type(config) not in METHODS:
        known = ", ".join(sorted(kind.__name__ for kind in METHODS))
        raise ConfigError(f"attach: found {type(config).__name__}, allowed {known}")
    if any(True for _ in changes(model)):
        raise ConfigError("attach: the model has an adapter already; load the base again, or merge")
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    freeze(model)
    try:
        return METHODS[type(config)].attach(model, config, seed)
    except ConfigError:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(before[name])
        raise
