"""What lies in an adapter's tensor file, by what it is of the model at hand.

    base_model.model. PATH .lora_A.weight                 a change of the module at PATH
                           .lora_A.NAME.weight            the same, as a raw state dict has it
                           .weight   .bias                the module's own, in place of the base's
                           .modules_to_save.NAME.weight   the same
                           .base_layer.weight             the base's, under a change
                           .original_module.weight        the base's, that nobody asks

PATH is the module's in the class that the adapter was trained on (module_names.py). Soft prompts
have no PATH, and heads beside them `base_model.` alone. Nothing is loaded here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minift.checkpoints.families import FAMILIES
from minift.checkpoints.mapping import is_buffer
from minift.checkpoints.open import TensorFile
from minift.errors import FormatError, one_line
from minift.interop.methods import FORMATS
from minift.interop.module_names import ModuleNames
from minift.interop.peft_format import Shapes

PREFIX = "base_model.model."
SOFT = "prompt_embeddings"
# How a change's tensors end: with what the file's name for it ends, and with what ours does.
STEMS = {stem.removesuffix("."): stem for file in FORMATS.values() for stem in file.stems}
UNDER = ("token_adapter.base_layer", "base_layer")
PICTURES = ("vision_tower.", "model.vision_tower.", "multi_modal_projector.",
            "model.multi_modal_projector.", "vision_model.", "model.vision_model.")  # fmt: skip
KINDS = ("", "own", "under", "saved")  # where a tensor is there several times, the last counts
FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclass
class Contents:
    """Keys of the file by what they are."""

    changes: dict[str, dict[str, str]] = field(default_factory=dict)  # module -> leaf -> key
    weights: dict[str, str] = field(default_factory=dict)  # a tensor of the base -> key
    under: set[str] = field(default_factory=set)  # of those, the ones under a change
    pictures: list[str] = field(default_factory=list)  # of a part for pictures
    unknown: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def shapes(self, file: TensorFile) -> Shapes:
        return {
            path: {leaf: tuple(file.tensors[key].shape) for leaf, key in leaves.items()}
            for path, leaves in self.changes.items()
        }


def contents_of(file: TensorFile, module_names: ModuleNames, *, soft: bool) -> Contents:
    """Take the keys apart. FormatError for tensors that are no floating-point numbers."""
    found, prefix = Contents(), "base_model." if soft else PREFIX
    layout = FAMILIES[module_names.family].folder
    kinds: dict[str, str] = {}
    for key in file.tensors:
        rest = key.removeprefix(prefix)
        if key == SOFT and soft:
            found.changes[""] = {SOFT: key}
        elif rest == key:
            found.unknown.append(key)
        elif rest.startswith(PICTURES):
            found.pictures.append(key)
        elif (change := a_change(rest)) is not None:
            path = module_names.place(change[0])
            leaves = found.changes.setdefault(path, {}) if path is not None else None
            if leaves is None:
                found.unknown.append(key)
            elif change[1] in leaves:
                found.twice.append(key)
            else:
                leaves[change[1]] = key
        elif not is_buffer(layout, rest) and "original_module" not in rest.split("."):
            put_weight(found, key, rest, module_names, kinds)
    odd = [key for key in used(found) if file.tensors[key].kind not in FLOATS]
    if odd:
        raise FormatError(file.path, f'tensor "{odd[0]}"', file.tensors[odd[0]].kind,
                          ", ".join(FLOATS), "bad-dtype")  # fmt: skip
    return found


def used(found: Contents) -> list[str]:
    return [key for leaves in found.changes.values() for key in leaves.values()] + [
        *found.weights.values(), *found.unknown, *found.twice,
    ]  # fmt: skip


def a_change(name: str) -> tuple[str, str] | None:
    """PATH.STEM[.NAME][.weight or .bias] -> (PATH, leaf); None for anything else."""
    for stem, ours in STEMS.items():
        path, there, rest = name.partition(f".{stem}")
        if not there or (rest and rest[0] != "."):
            continue
        words = rest.split(".")[1:]
        end = words.pop() if words and words[-1] in ("weight", "bias") else ""
        if len(words) > 1:  # an adapter's name has no dot
            continue
        if ours.endswith("."):
            return path, ours + end if end else stem
        return path, ours if end != "bias" else f"{ours}.bias"
    return None


def put_weight(
    found: Contents, key: str, name: str, module_names: ModuleNames, kinds: dict[str, str]
) -> None:
    """Note a whole tensor under the name that the base has for it."""
    path, _, leaf = name.rpartition(".")
    kind = "own"
    for infix in UNDER:
        if path.endswith(f".{infix}"):
            path, kind = path.removesuffix(f".{infix}"), "under"
            break
    path, saved, rest = path.partition(".modules_to_save")
    kind, words = "saved" if saved else kind, rest.split(".")[1:]
    # After it stands an adapter's name, or none, and then what is inside of the module.
    for inside in (words[1:], words):
        placed = module_names.place(".".join([path, *inside]))
        tensor = f"{placed}.{leaf}"
        if placed is not None and tensor in module_names.tensors:
            break
    else:
        found.unknown.append(key)
        return
    known = kinds.get(tensor, "")
    if kind == known:
        found.twice.append(key)
    elif KINDS.index(kind) > KINDS.index(known):
        found.weights[tensor], kinds[tensor] = key, kind
        (found.under.add if kind == "under" else found.under.discard)(tensor)


def problems_of(found: Contents) -> list[str]:
    """What no part of the model can have."""
    return [f"unexpected {one_line(key, 200)}" for key in found.unknown] + [
        f"twice {one_line(key)}" for key in found.twice
    ]
