"""Where a method can change a model, and what hangs there.

| place | path | what hangs there |
|---|---|---|
| a linear of a projection group | `blocks.0.attn.qkv.q` | `change(linear, x)`, asked instead |
| a sublayer | `blocks.0.mlp` | `change(sublayer, x, context)`, asked what it adds |
| the embedding, a norm, the head | `embed` | `change(module, x, out)`, asked after it |
| any of these modules | `embed` | a `Copy` of its weights, in place of its own, under the rest |
| the whole model | | a part: `before(model, given)` and `after(out)` of every forward pass |

Each place holds the changes of any number of adapters by name; one `Switch`, shared by all places
of a model, says which is asked. Nothing else of the model knows that something hangs on it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from minift.errors import ConfigError
from minift.kernels.lora.dispatch import adapted_linears, adapted_rows
from minift.kernels.lora.reference import Adapted, watched
from minift.kernels.mlp.dispatch import mlp
from minift.model.attention_mask import ForwardContext, selected_positions
from minift.model.transformer import MLP, Attention, Projections, Transformer, branch
from minift.peft.module_copy import Copy

if TYPE_CHECKING:
    from minift.tokenizers.text_format import TextFormat

GROUPS = {
    "attention": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
    "all": ("q", "k", "v", "o", "gate", "up", "down"),
}
WHOLE = ("embed", "head")  # targets that are no linear of a block
APART = ("pooler", "head.dense", "head.decoder")  # of an encoder: asked after, as those two are


@dataclass
class Switch:
    """Which adapter is asked; None: the base. `rows` names one for each row of the batch."""

    active: str | None = None
    rows: tuple[str | None, ...] | None = None


class Slot(nn.ModuleDict):
    """The changes at one place, by the names of their adapters; `NAME/own` is a Copy."""

    def __init__(self, switch: Switch):
        super().__init__()
        self.switch = switch

    @property
    def active_change(self) -> nn.Module | None:
        name = self.switch.active
        return self[name] if name is not None and name in self else None

    @property
    def copied(self) -> bool:
        return f"{self.switch.active}/own" in self

    def under(self, module: nn.Module, name: str | None) -> nn.Module:
        """What an adapter's change changes: the module, or the adapter's copy of it."""
        own = self._modules.get(f"{name}/own")
        return own.stand_in(module) if isinstance(own, Copy) else module


class LinearSlot(Slot):
    def forward(self, linear: nn.Linear, x: Tensor) -> Tensor:
        change, under = self.active_change, self.under(linear, self.switch.active)
        return under(x) if change is None else change(under, x)

    def adapted(self, linear: nn.Linear) -> Adapted | None:
        """The linear with the active low-rank product; None for any other change."""
        return None if self.switch.rows is not None else self.of(self.switch.active, linear)

    def of(self, name: str | None, linear: nn.Linear) -> Adapted | None:
        """The same of one adapter."""
        if f"{name}/own" in self:
            return None  # a stand-in is made anew each time, which no kernel may remember
        if name is None or name not in self:
            return Adapted(linear)
        change = self[name]
        return change.adapted(linear) if hasattr(change, "adapted") else None  # type: ignore[operator]


class SublayerSlot(Slot):
    def forward(self, sublayer: Attention | MLP, x: Tensor, context: ForwardContext) -> Tensor:
        change = self.active_change
        return branch(sublayer, x, context) if change is None else change(sublayer, x, context)


class ModuleSlot(Slot):
    def forward(self, module: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor | None:
        """A forward hook of `module`; None leaves its output as it is."""
        change = self.active_change
        if self.copied:
            module = self.under(module, self.switch.active)
            out = module(*inputs)
            return out if change is None else change(module, *inputs, out)
        return None if change is None else change(module, *inputs, out)


class Adapters(nn.Module):
    """All that is attached to one model. It is `model.adapters` once there is something."""

    def __init__(self) -> None:
        super().__init__()
        self.switch = Switch()
        self.configs: dict[str, Any] = {}  # by name of the adapter, as is all that follows
        self.texts: dict[str, TextFormat] = {}  # how those it was trained on were made
        self.is_trainable: dict[
            str, bool
        ] = {}  # whether its parameters are trained while it is active
        self.parts = nn.ModuleDict()  # what a method keeps for the model as a whole
        self.slots = nn.ModuleDict()  # ModuleSlots, by path with "/" for "."
        self.adapter_per_row: tuple[str | None, ...] | None = None
        self.selected: Tensor | None = None  # positions, of a pass of mixed rows

    def before(self, model: Transformer, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """A forward pre-hook: the rows' adapters, and what the active one's part adds."""
        if args:
            given = given | {"tokens": args[0]}
        # Set anew every time: a pass that failed has left its rows behind.
        self.switch.rows, self.selected = None, None
        if self.adapter_per_row is not None:
            self.switch.rows = self.rows_of(given)
            # The model would gather them before its last block, where rows still matter.
            given, self.selected = given | {"selected": None}, given.get("selected")
        part = self.part
        return ((), given if part is None else part.before(model, given))  # type: ignore[operator]

    def after(self, model: Transformer, args: Any, given: dict[str, Any], out: Tensor) -> Any:
        self.switch.rows = None
        selected, self.selected = self.selected, None
        if selected is not None:
            at = selected_positions(selected, *out.shape[:2])
            return out.flatten(0, 1).index_select(0, at)
        part = self.part
        return None if part is None else part.after(out)  # type: ignore[operator]

    def recompute_context(self) -> AbstractContextManager[None]:
        """A checkpointed block is computed again with the adapter of its forward pass, whichever is
        active by then."""
        return self.restored(self.switch.active, self.switch.rows)

    @contextmanager
    def restored(self, active: str | None, rows: tuple[str | None, ...] | None) -> Iterator[None]:
        before = self.switch.active, self.switch.rows
        self.switch.active, self.switch.rows = active, rows
        try:
            yield
        finally:
            self.switch.active, self.switch.rows = before

    @property
    def is_identity(self) -> bool:
        """True if `before` and `after` leave a forward pass as it is."""
        return self.part is None and self.adapter_per_row is None

    @property
    def row_keys(self) -> tuple[str | None, ...] | None:
        return self.adapter_per_row

    @property
    def part(self) -> nn.Module | None:
        name = self.switch.active
        return self.parts[name] if name is not None and name in self.parts else None

    def rows_of(self, given: dict[str, Any]) -> tuple[str | None, ...]:
        """The adapter of every row at hand: decoding drops rows that are done."""
        assert self.adapter_per_row is not None
        cache = given.get("cache")
        names = self.adapter_per_row
        if cache is not None and len(cache.rows) and int(cache.rows.max()) < len(names):
            names = tuple(names[i] for i in cache.rows.tolist())
        tensor = given["tokens"] if given.get("tokens") is not None else given["embeds"]
        if len(names) != tensor.shape[0]:
            raise ConfigError(
                f"rows: found a batch of {tensor.shape[0]}, allowed {len(names)}, a name for each"
            )
        return names


def adapters_of(model: nn.Module) -> Adapters | None:
    found = getattr(model, "adapters", None)
    return found if isinstance(found, Adapters) else None


def get_or_create_adapters(model: Transformer) -> Adapters:
    """The model's adapters; the object and its hooks are made by the first call."""
    found = adapters_of(model)
    if found is None:
        found = Adapters()
        model.adapters = found
        model.extensions.append(found)
        for module in model.modules():
            if isinstance(module, Projections):
                module.together = group_at_once
            elif isinstance(module, MLP):
                module.together = mlp_at_once
        model.register_forward_pre_hook(found.before, with_kwargs=True)
        model.register_forward_hook(found.after, with_kwargs=True, always_call=False)
    return found


def sums(group: Projections, names: tuple[str, ...]) -> list[Adapted] | None:
    """Each Linear with the low-rank product that is added to it; None if one change is another."""
    found = []
    for name in names:
        linear = group.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        one: Adapted | None = Adapted(linear)
        if name in group.changes:
            slot = group.changes[name]
            one = slot.adapted(linear) if isinstance(slot, LinearSlot) else None
        if one is None:
            return None
        found.append(one)
    return found


def group_at_once(
    group: Projections, names: tuple[str, ...], x: Tensor
) -> tuple[Tensor, ...] | None:
    """These members' outputs by one kernel, where all of their changes are low-rank sums."""
    each = rows_at(group)
    if each is not None:
        return mixed(group, names, x, each)
    found = sums(group, names)
    return None if found is None else adapted_linears(x, found)


def rows_at(group: Projections) -> tuple[str | None, ...] | None:
    """The adapter of every row of the batch, where rows have adapters of their own."""
    found = [slot.switch.rows for slot in group.changes.values() if isinstance(slot, LinearSlot)]
    return found[0] if found else None


def mixed(
    group: Projections, leaves: tuple[str, ...], x: Tensor, each: Sequence[str | None]
) -> tuple[Tensor, ...]:
    """Each row (of B) through its own adapter: one product for the base, low-rank ones on top."""
    names = sorted({name for name in each if name is not None})
    members = []
    for leaf in leaves:
        linear = group.get_submodule(leaf)
        assert isinstance(linear, nn.Linear)
        changes = [Adapted(linear) for _ in names] or [Adapted(linear)]
        if leaf in group.changes:
            slot = group.changes[leaf]
            assert isinstance(slot, LinearSlot)
            for k, name in enumerate(names):
                one = slot.of(name, linear)
                assert one is not None, "adapters.rows lets sums in, nothing else"
                changes[k] = one
        members.append(changes)
    return adapted_rows(x, members, [-1 if name is None else names.index(name) for name in each])


def mlp_at_once(block: MLP, x: Tensor) -> Tensor | None:
    """An MLP's output by one kernel, under the same condition."""
    if watched(block.hidden) or watched(block.out):
        return None
    hidden, out = (sums(group, group.members) for group in (block.hidden, block.out))
    if hidden is None or out is None:
        return None
    return mlp(x, hidden, out[0], block.act)


# ---- places by name ------------------------------------------------------------------------------


def groups(model: Transformer) -> Iterator[tuple[str, Projections]]:
    """Every projection group with its path, in the order of the model."""
    for path, module in model.named_modules():
        if isinstance(module, Projections):
            yield path, module


def linears(model: Transformer) -> Iterator[tuple[str, nn.Linear]]:
    """Every linear of every group: (`blocks.0.attn.qkv.q`, linear)."""
    for path, group in groups(model):
        for name in group.members:
            linear = group.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            yield f"{path}.{name}", linear


def members(model: Transformer, targets: Sequence[str]) -> Iterator[tuple[str, nn.Linear]]:
    """The linears that `targets` names, in the order of the model.

    A target is a word of GROUPS, a member's name, or a whole path; what the model does not have is
    refused.
    """
    every = dict(linears(model))
    by_name = {path.rpartition(".")[2] for path in every}
    wanted: set[str] = set()
    for target in targets:
        if target in WHOLE or target in APART:
            continue
        names = GROUPS.get(target, (target,))
        if target in GROUPS:  # a model without a gate has no such linear, and is not asked for it
            names = tuple(name for name in names if name in by_name)
        for name in names:
            if name not in by_name and name not in every:
                choices = [*GROUPS, *sorted(by_name), *WHOLE]
                near = difflib.get_close_matches(name, [*choices, *every], 1)
                hint = f"; nearest: {near[0]}" if near else ""
                raise ConfigError(f'targets: found "{name}", allowed {", ".join(choices)}{hint}')
            wanted.add(name)
    for path, linear in every.items():
        if path in wanted or path.rpartition(".")[2] in wanted:
            yield path, linear


# ---- hanging and finding -------------------------------------------------------------------------


def insert(model: Transformer, path: str, name: str, change: nn.Module) -> None:
    """Let `change` decide, for the adapter `name`, what the module at `path` computes."""
    adapters = get_or_create_adapters(model)
    module = model.get_submodule(path)
    parent, _, leaf = path.rpartition(".")
    group = model.get_submodule(parent)
    slot: nn.Module | None
    if isinstance(group, Projections):
        if leaf not in group.changes:
            group.changes[leaf] = LinearSlot(adapters.switch)
        slot = group.changes[leaf]
    elif isinstance(module, Attention | MLP):
        if module.change is None:
            module.change = SublayerSlot(adapters.switch)
        slot = module.change
    else:
        key = path.replace(".", "/")
        if key not in adapters.slots:
            adapters.slots[key] = ModuleSlot(adapters.switch)
            module.register_forward_hook(adapters.slots[key])
        slot = adapters.slots[key]
    assert isinstance(slot, Slot)
    if name in slot:
        raise ConfigError(f"attach: {path} has a change of {name} already")
    slot[name] = change.train(module.training)


def forget(model: Transformer, *paths: str) -> None:
    """Let go of empty slots at modules that were replaced: their hooks hang on the old ones."""
    adapters = adapters_of(model)
    for key in (path.replace(".", "/") for path in paths):
        if adapters is not None and key in adapters.slots:
            del adapters.slots[key]


def slots(model: Transformer) -> Iterator[tuple[str, nn.Module, Slot]]:
    """Every place with something on it: (path, the module there, its slot)."""
    adapters = adapters_of(model)
    if adapters is None:
        return
    for path, group in groups(model):
        for leaf, slot in group.changes.items():
            if isinstance(slot, Slot):
                yield f"{path}.{leaf}", group.get_submodule(leaf), slot
    for path, module in model.named_modules():
        if isinstance(module, Attention | MLP) and isinstance(module.change, Slot):
            yield path, module, module.change
    for key, slot in adapters.slots.items():
        path = key.replace("/", ".")
        assert isinstance(slot, Slot)
        yield path, model.get_submodule(path), slot


def changes(
    model: Transformer, name: str | None = None
) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """What hangs of one adapter, by default the active one: (path, the module, the change).

    A copy comes before the change that it lies under, and which has the copy for its module.
    """
    adapters = adapters_of(model)
    chosen = name if name is not None or adapters is None else adapters.switch.active
    for path, module, slot in slots(model):
        if chosen is None:
            continue
        if f"{chosen}/own" in slot:
            yield path, module, slot[f"{chosen}/own"]
        if chosen in slot:
            yield path, slot.under(module, chosen), slot[chosen]
