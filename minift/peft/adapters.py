"""The adapters of a model: which is active, none at all, one for each row, and taking one off.

minift.attach(model, LoRA(), name="a")      a is active, and trained
minift.load_adapter(model, "b", name="b")   b is active; a stays where it is
minift.use(model, "a")                      no file is read again
with minift.activated(model, "b"): ...      b computes; what is trainable stays so
with minift.rows(model, ["a", "b", None]): logits = model(tokens)     (B, T), B = 3
with minift.disabled(model): ...            the base, bit for bit
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from minift.errors import ConfigError
from minift.model.transformer import Transformer
from minift.peft.slots import Adapters, adapters_of, changes, slots

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
DEFAULT = "default"


def names(model: Transformer) -> list[str]:
    """Of the adapters that are attached, in the order of their arrival."""
    adapters = adapters_of(model)
    return list(adapters.configs) if adapters is not None else []


def active(model: Transformer) -> str | None:
    adapters = adapters_of(model)
    return adapters.switch.active if adapters is not None else None


def config_of(model: Transformer, name: str | None = None) -> object:
    """The configuration of an adapter, by default the active one; None where there is none."""
    adapters = adapters_of(model)
    chosen = active(model) if name is None else name
    return None if adapters is None or chosen is None else adapters.configs.get(chosen)


def room_left(model: Transformer) -> int:
    """Positions that a text may take: the context, less what the active adapter puts before it."""
    adapters = adapters_of(model)
    part = None if adapters is None else adapters.part
    return model.config.context - getattr(part, "positions", 0)


def check_new(model: Transformer, name: str) -> None:
    """Refuse a name that no module can have, or that the model has already."""
    if not NAME.fullmatch(name) or hasattr(nn.ModuleDict, name):
        allowed = "letters, digits, - and _, at most 64"
        raise ConfigError(f'name: found "{name}", allowed {allowed}')
    if name in names(model):
        raise ConfigError(
            f'attach: the model has an adapter "{name}" already; merge, detach it, or add a name'
        )


def known(model: Transformer, name: str, verb: str) -> Adapters:
    adapters = adapters_of(model)
    if adapters is None or name not in adapters.configs:
        there = ", ".join(names(model)) or "none is attached"
        raise ConfigError(f'{verb}: found no adapter "{name}", allowed {there}')
    return adapters


def modules_of(model: Transformer, name: str) -> Iterator[nn.Module]:
    """The modules that hold an adapter's parameters."""
    adapters = adapters_of(model)
    for _, _, change in changes(model, name):
        yield change
    if adapters is not None and name in adapters.parts:
        yield adapters.parts[name]


def use(model: Transformer, name: str | None) -> Transformer:
    """Make one adapter the active one, or with None the base; what it learns is trainable again."""
    if name is None:
        adapters = adapters_of(model)
        if adapters is None:
            return model
    else:
        adapters = known(model, name, "use")
    for other in adapters.configs:
        for module in modules_of(model, other):
            module.requires_grad_(other == name and adapters.is_trainable[other])
    adapters.switch.active = name
    return model


def detach(model: Transformer, name: str = DEFAULT) -> Transformer:
    """Take an adapter off. The base stays as it is; another adapter does not become active."""
    adapters = known(model, name, "detach")
    for _, _, slot in list(slots(model)):
        for key in {name, f"{name}/own"} & set(slot):
            del slot[key]
    if name in adapters.parts:
        del adapters.parts[name]
    del adapters.configs[name], adapters.is_trainable[name]
    adapters.texts.pop(name, None)
    if adapters.switch.active == name:
        adapters.switch.active = None
    return model


def freeze(model: Transformer) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@contextmanager
def restored_on_error(model: Transformer, name: str) -> Iterator[None]:
    """An error while `name` is made or filled leaves the model as it was before."""
    before, learned = active(model), {n: p.requires_grad for n, p in model.named_parameters()}
    try:
        yield
    except BaseException:
        adapters = adapters_of(model)
        if adapters is not None and name in adapters.configs:
            detach(model, name)
            adapters.switch.active = before
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(learned.get(key, False))  # new: of a module that was replaced
        raise


@contextmanager
def activated(model: Transformer, name: str | None) -> Iterator[Transformer]:
    """Inside, the adapter `name` (None: the base) computes; what is trainable stays so.

    So a frozen reference, or a value model with a head of its own, runs between two steps of the
    policy without freezing it, as `use` would.
    """
    adapters = adapters_of(model) if name is None else known(model, name, "activated")
    if adapters is None:
        yield model
        return
    before = adapters.switch.active, adapters.adapter_per_row
    adapters.switch.active, adapters.adapter_per_row = name, None
    try:
        yield model
    finally:
        adapters.switch.active, adapters.adapter_per_row = before


@contextmanager
def disabled(model: Transformer) -> Iterator[Transformer]:
    """Inside, the model is the base, bit for bit: no adapter computes."""
    with activated(model, None):
        yield model


@contextmanager
def rows(model: Transformer, each: Sequence[str | None]) -> Iterator[Transformer]:
    """Inside, row i of every batch goes through the adapter `each[i]`; None is the base.

    For LoRA on linears, whose changes are sums: other methods are refused by name. Generation too:
    a row keeps its adapter when others are done. Chen et al. 2023 (Punica), arXiv:2310.18547.
    """
    if isinstance(each, str):
        raise ConfigError(f'rows: found the text "{each}", allowed a name or None for each row')
    for name in {name for name in each if name is not None}:
        adapters = known(model, name, "rows")
        for path, _, change in changes(model, name):
            if not getattr(change, "added", False):
                kind = str(adapters.configs[name]).partition(" on ")[0]
                raise ConfigError(f'rows: "{name}" is {kind} at {path}, allowed LoRA on linears')
        if name in adapters.parts:
            raise ConfigError(
                f'rows: "{name}" is {adapters.configs[name]}, allowed LoRA on linears'
            )
    found = adapters_of(model)
    if found is None:
        raise ConfigError("rows: nothing is attached to the model")
    before = found.switch.active, found.adapter_per_row
    found.switch.active, found.adapter_per_row = None, tuple(each)
    try:
        yield model
    finally:
        found.switch.active, found.adapter_per_row = before
        found.switch.rows = None
