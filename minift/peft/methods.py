"""The registry: a method's config decides which file attaches it."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from minift.errors import ConfigError
from minift.model.transformer import Transformer
from minift.peft import bitfit, bottleneck, head, ia3, lora, prefix, prompt, ptuning
from minift.peft.adapters import (
    DEFAULT,
    check_new,
    config_of,
    freeze,
    modules_of,
    restored_on_error,
    trainable,
    use,
)
from minift.peft.slots import adapters_of, get_or_create_adapters

# The word of the command line, the config, its file. Beside the config the file has `attach`,
# `count`, ABOUT (about.py), and RATE, the learning rate of a run that names none.
METHODS: Mapping[str, tuple[type, ModuleType]] = {
    "lora": (lora.LoRA, lora),
    "prefix": (prefix.Prefix, prefix),
    "prompt": (prompt.Prompt, prompt),
    "ptuning": (ptuning.PTuning, ptuning),
    "ia3": (ia3.IA3, ia3),
    "bitfit": (bitfit.BitFit, bitfit),
    "bottleneck": (bottleneck.Bottleneck, bottleneck),
}


def method_of(config: object) -> ModuleType:
    """The file of a config's method."""
    for kind, module in METHODS.values():
        if type(config) is kind:
            return module
    known = ", ".join(sorted(kind.__name__ for kind, _ in METHODS.values()))
    raise ConfigError(f"attach: found {type(config).__name__}, allowed {known}")


def attach(
    model: Transformer,
    config: Any,
    *,
    name: str = DEFAULT,
    seed: int = 0,
    sized: bool = False,
) -> Transformer:
    """Freeze the model, attach a method to it in place and make it the active one; returns `model`.

    `config` is a method's: LoRA, Bottleneck, Prefix, Prompt, PTuning, IA3 or BitFit; the sources
    are in their files. What is attached is float32 (float64 on a float64 base) and the only thing
    that is trainable. `seed` decides its random start, whatever torch drew before. A model with a
    head for labels gets a trainable copy of the head for each adapter.

    Several adapters may be attached under different names, of which one is active (`minift.use`).
    With `sized` the tensors of a file follow, which may have more ranks than a matrix can use.

    Raises ConfigError where the model has no such targets or an adapter of that name; the model is
    then as it was before.
    """
    method = method_of(config)
    check_new(model, name)
    with restored_on_error(model, name):
        adapters = get_or_create_adapters(model)
        adapters.configs[name], adapters.is_trainable[name] = config, True
        make = getattr(method, "make", method.attach) if sized else method.attach
        make(model, config, name, seed)
        head.attach(model, name)
        freeze(model)
        return use(model, name)


def count(model: Transformer, config: Any) -> int:
    """Trainable numbers of a method on a model, in closed form."""
    found = method_of(config).count(model, config)
    assert isinstance(found, int)
    return found


def learning_rate(model: Transformer) -> float:
    """That of the active adapter's method, for a run that names none."""
    config = config_of(model)
    if config is None:
        raise ConfigError("lr: give one; only an attached method has a usual rate")
    rate = method_of(config).RATE
    assert isinstance(rate, float)
    return rate


def learning_ratios(model: Transformer) -> dict[nn.Parameter, float]:
    """Trainable parameters that learn at a multiple of the run's rate."""
    adapters, ratios = adapters_of(model), {}
    learned = set(trainable(model).values())
    for name in adapters.configs if adapters is not None else ():
        for module in modules_of(model, name):
            for leaf, ratio in getattr(module, "lr_ratios", {}).items():
                parameter = module.get_parameter(leaf)
                if parameter in learned and ratio != 1:
                    ratios[parameter] = ratio
    return ratios
