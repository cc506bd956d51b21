"""How a method's adapter looks in PEFT's files: what each method says, and adapter_files.py asks.

adapter_config.json holds options, adapter_model.safetensors tensors. For a method that hangs on
linears the tensors are named after the family's module that each belongs to; one of their modules
may hold several of ours (GPT-2's and GPT-NeoX's q, k and v), hence lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from minift.errors import one_line
from minift.interop.module_names import HFModule, ModuleNames
from minift.model.transformer import Transformer
from minift.peft.soft_prompt import SoftPrompt

Problems = list[str]
Shapes = Mapping[str, Mapping[str, tuple[int, ...]]]  # of a file: by module and name inside of it
CONFIG = "adapter_config.json"  # PEFT's, and AdapterHub's too

# Options that say nothing about the mathematics of any method.
IGNORED = (
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "auto_mapping", "megatron_config", "megatron_core", "runtime_config"),
    *("layers_pattern", "modules_to_save"),
)


@dataclass(frozen=True)
class Format:
    """A method on linears, in PEFT's words.

    `options` are the keys that `read` looks at, `off` those that change the mathematics in a way
    that minift does not have, each with the values that switch it off. `read` may look at what
    lies in the tensor file too: which modules are there, and their ranks, follow from it.
    """

    peft_type: str
    read: Callable[[Mapping[str, Any], ModuleNames | None, Shapes, Problems], Any]
    touched: Callable[[Transformer, Any], list[str]]  # our modules that have tensors in the file
    write: Callable[[Any, ModuleNames, Mapping[str, nn.Module]], dict[str, Any]]
    to_file: Callable[[HFModule, Sequence[nn.Module | None]], dict[str, Tensor]]
    shapes: Callable[[HFModule, Any], dict[str, tuple[int, ...]]]
    fill: Callable[[HFModule, Sequence[nn.Module], Mapping[str, Tensor]], None]
    is_identity: Callable[[Mapping[str, Tensor]], bool]  # tensors that change nothing
    state: Callable[[Transformer, Any], dict[str, tuple[int, ...]]] | None = None  # of training
    # How the names of tensors end, without an adapter's name; "." where `weight` or `bias` follows.
    stems: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    unsupported: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class SoftPromptFormat:
    """A method that stands on the model as a whole, in PEFT's words: its part, not changes."""

    peft_type: str
    read: Callable[[Mapping[str, Any], Problems], Any]
    write: Callable[[Any, Transformer], dict[str, Any]]
    to_file: Callable[[Transformer, nn.Module], dict[str, Tensor]]
    shapes: Callable[[Transformer, Any], dict[str, tuple[int, ...]]]
    fill: Callable[[nn.Module, Mapping[str, Tensor]], None]
    bare: Callable[[Any], Any]  # the config without a network that only training needs
    size_keys: tuple[str, ...]  # the sizes in the options that the tensors could contradict
    stems: tuple[str, ...] = ()  # its one tensor has a name of its own
    options: tuple[str, ...] = ()
    unsupported: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def misfits(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> Problems:
    """Tensors that are missing, that are too many, and those of another shape."""
    problems = [f"missing {key}" for key in wanted if key not in found]
    problems += [f"unexpected {key}" for key in found if key not in wanted]
    problems += [
        f"{key} is {found[key]}, not {shape}"
        for key, shape in wanted.items()
        if key in found and found[key] != shape
    ]
    return problems


def one(data: Mapping[str, Any], key: str, kind: type, problems: Problems) -> Any:
    """An option that may be missing or null."""
    value = data.get(key)
    if value is not None and type(value) is not kind:
        words = {bool: "true or false", dict: "an object", list: "a list", str: "a text"}
        problems.append(f"{key} is {one_line(value)}, not {words[kind]}")
        return None
    return value


def whole(data: Mapping[str, Any], key: str, problems: Problems, usual: int | None = None) -> int:
    value = data.get(key, usual)
    if type(value) is not int:
        problems.append(f"{key} is {one_line(value)}, not a whole number")
        return 1
    return value


def number(
    data: Mapping[str, Any], key: str, problems: Problems, usual: float | None = None
) -> float:
    value = data.get(key, usual)
    if type(value) not in (int, float):
        problems.append(f"{key} is {one_line(value)}, not a number")
        return 1.0
    return float(value)


# The sizes that every soft prompt's configuration repeats.
SIZES = ("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers",
         "num_transformer_submodules")  # fmt: skip


def sizes(model: Transformer, tokens: int) -> dict[str, Any]:
    config = model.config
    return {
        "num_virtual_tokens": tokens,
        "token_dim": config.dim,
        "num_attention_heads": config.heads,
        "num_layers": config.layers,
        "num_transformer_submodules": 1,
    }


def soft_tensors(model: Transformer, part: nn.Module) -> dict[str, Tensor]:
    assert isinstance(part, SoftPrompt)
    return {"prompt_embeddings": part.vectors()}
