"""What only training needs of an adapter: a file beside those that other programs read.

Prompt encoders make the virtual tokens that the adapter's own file has; pissa's change is counted
from where it started. `minift_state.safetensors` holds both, by the path of each parameter, and its
metadata the method's configuration. It must give the tensors that were saved with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from minift.errors import ConfigError, FormatError
from minift.formats import safetensors, strict_json
from minift.interop.contents import FLOATS
from minift.interop.methods import FORMATS
from minift.interop.peft_format import Format, SoftPromptFormat, misfits
from minift.interop.stored import TENSORS
from minift.model.transformer import Transformer
from minift.peft.adapters import known
from minift.peft.methods import count
from minift.peft.slots import changes

STATE = "minift_state.safetensors"
AGREE = 1e-4  # how far the training state may be from the tensors that it led to, of the largest


def training_state(model: Transformer, name: str) -> dict[str, Tensor]:
    """All tensors of an adapter whose files are not its parameters, by the path of each."""
    adapters = known(model, name, "save_adapter")
    state: dict[str, Tensor] = {}
    if name in adapters.parts and getattr(adapters.parts[name], "derived", False):
        part = adapters.parts[name].state_dict()
        state |= {f"part.{leaf}": tensor.detach().cpu() for leaf, tensor in part.items()}
    for path, _, change in changes(model, name):
        if getattr(change, "derived", False):
            leaves = change.state_dict().items()
            state |= {f"{path}.{leaf}": tensor.detach().cpu() for leaf, tensor in leaves}
    return state


def state_config(model: Transformer, config: Any, state: safetensors.SafetensorsFile) -> Any:
    """The config that training had, which the exported one cannot tell (encoders, pissa)."""
    place, kind = state.path, type(config)
    text = state.metadata.get("config", "")
    data = strict_json.parse(text.encode(), place, "config", limit_bytes=strict_json.CONFIG_LIMIT)
    kinds = get_type_hints(kind)
    values = {key: tupled(value) for key, value in data.items()} if type(data) is dict else {}
    if (
        not values  # an older state may lack a newer field, which then has its default
        or not values.keys() <= kinds.keys()
        or not all(fits(value, kinds[key]) for key, value in values.items())
        or state.metadata.get("method") != kind.__name__
    ):
        raise FormatError(place, "config", text, f"the fields of {kind.__name__}", "unknown-field")
    try:
        trained = kind(**values)
    except ConfigError as error:
        raise FormatError(place, "config", error, kind.__name__, "out-of-range") from None
    # Before anything is made: nothing larger than what the file holds.
    check_kinds(state)
    there = sum(math.prod(entry.shape) for entry in state.tensors.values())
    file = FORMATS[kind]
    if isinstance(file, SoftPromptFormat) and (numbers := count(model, trained)) != there:
        wanted = f"{numbers:,} numbers"
        raise FormatError(place, "tensors", f"{there:,} numbers", wanted, "shape-mismatch")
    if isinstance(file, Format) and file.state is not None:
        found = {key: entry.shape for key, entry in state.tensors.items()}
        try:
            wanted_shapes = file.state(model, trained)
        except ConfigError as error:
            allowed = "targets of the model"
            raise FormatError(place, "config", error, allowed, "out-of-range") from None
        check_shapes(state, wanted_shapes, found)
    return trained


def check_kinds(state: safetensors.SafetensorsFile) -> None:
    for key, entry in state.tensors.items():
        if entry.kind not in FLOATS:
            raise FormatError(state.path, f'tensor "{key}"', entry.kind, ", ".join(FLOATS),
                              "bad-dtype")  # fmt: skip


def check_shapes(
    state: safetensors.SafetensorsFile,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> None:
    problems = misfits(wanted, found)
    if problems:
        count = f"{len(problems)} that do not fit"
        raise FormatError(state.path, "tensors", count, "the method's own", "shape-mismatch",
                          problems)  # fmt: skip


def tupled(value: Any) -> Any:
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def fits(value: Any, kind: Any) -> bool:
    """Whether a value from a file is of a field's type: int, float, str, bool, tuples of them."""
    if get_origin(kind) is not tuple:
        return type(value) is kind or (kind is float and type(value) is int)
    inner = get_args(kind)
    if inner[-1] is Ellipsis and type(value) is tuple:
        inner = (inner[0],) * len(value)
    return type(value) is tuple and len(value) == len(inner) and all(map(fits, value, inner))


def put_state(
    model: Transformer,
    name: str,
    state: safetensors.SafetensorsFile,
    tensors: Mapping[str, Tensor],
    exported: Callable[[Transformer, str], dict[str, Tensor]],
) -> None:
    """Fill the training state, which must lead to the tensors that were exported with it."""
    wanted = {key: tuple(tensor.shape) for key, tensor in training_state(model, name).items()}
    check_shapes(state, wanted, {key: entry.shape for key, entry in state.tensors.items()})
    modules: dict[str, nn.Module] = {path: change for path, _, change in changes(model, name)}
    adapters = known(model, name, "load_adapter")
    if name in adapters.parts:
        modules["part"] = adapters.parts[name]
    for path, module in modules.items():
        own = {leaf: f"{path}.{leaf}" for leaf in module.state_dict()}
        if all(key in state.tensors for key in own.values()):
            module.load_state_dict({leaf: state.load(key) for leaf, key in own.items()})
    again = {key: tensor.cpu() for key, tensor in exported(model, name).items()}
    for key, tensor in tensors.items():
        limit = AGREE * max(float(tensor.abs().max()), 1e-6)
        near = (
            key in again
            and again[key].shape == tensor.shape
            and float((again[key] - tensor).abs().max()) <= limit  # false for NaN
        )
        if not near:
            found, allowed = f"a state that gives another {key}", f"the one in {TENSORS}"
            raise FormatError(state.path, "tensors", found, allowed, "shape-mismatch")
