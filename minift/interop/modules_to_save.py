"""Whole tensors of an adapter file: what is read, checked, hung on as copies, and written.

    base_model.model.lm_head.weight                            in `modules_to_save`, or resized
    base_model.model.model.layers.0.self_attn.q_proj.base_layer.bias      `bias` lora_only or all

A token table of another height resizes the model's, for all adapters: a copy alone could not, since
ids above it would have no row without the adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from minift.checkpoints.mapping import TRANSFORMS, Pair
from minift.checkpoints.open import TensorFile
from minift.errors import FormatError
from minift.interop.contents import PREFIX, Contents
from minift.interop.module_names import ModuleNames
from minift.interop.peft_format import misfits
from minift.model.heads import MaskedLMHead
from minift.model.transformer import Transformer
from minift.peft.adapters import names
from minift.peft.module_copy import Copy
from minift.peft.slots import changes, forget, insert
from minift.peft.token_rows import TableRows

TABLE = "embed.weight"
SCORES = ("head.weight", "head.decoder.weight", "head.decoder.bias")  # a row for every token


# ---- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Own:
    """One of the family's tensors that the adapter has of its own."""

    pair: Pair
    key: str  # of the file, or what it would be
    is_trainable: bool
    promised: bool  # by `modules_to_save`; others may be the base's own, written along


def resize(
    model: Transformer, module_names: ModuleNames, contents: Contents, file: TensorFile
) -> bool:
    """Give the model as many tokens as the adapter's table has; -> whether they are others."""
    rows = {
        ours: key
        for tensor, key in contents.weights.items()
        for ours in module_names.tensors[tensor].ours
        if ours == TABLE or ours in SCORES
    }
    shape = tuple(file.tensors[rows[TABLE]].shape) if TABLE in rows else ()
    if len(shape) != 2 or shape[0] in (0, model.config.vocab) or shape[1] != model.config.dim:
        return False
    count, was = shape[0], model.config.vocab
    if names(model):
        allowed = f"{was:,}, since another adapter is attached"
        raise FormatError(file.path, rows[TABLE], f"{count:,} rows", allowed, "shape-mismatch")
    new: dict[str, Tensor] = {}
    for ours in (TABLE, *SCORES):
        parts = ours.split(".")
        owner = model.get_submodule(parts[0]) if model.head is not None or ours == TABLE else None
        if len(parts) == 3:
            owner = owner.decoder if isinstance(owner, MaskedLMHead) else None
        elif ours != TABLE and not isinstance(owner, nn.Linear):
            owner = None
        if owner is None or (model.config.tied and ours.endswith("weight") and ours != TABLE):
            continue
        old = owner.get_parameter(parts[-1]).detach()
        wider = count > was
        if wider and (ours not in rows or file.tensors[rows[ours]].shape[0] != count):
            what = "the output matrix" if ours.endswith("weight") else "the output's biases"
            allowed = f"{was:,}, as the model has, or as many rows of {what}"
            found = f"{count:,} rows"
            raise FormatError(file.path, rows[TABLE], found, allowed, "shape-mismatch")
        more = file.load(rows[ours])[was:].to(old) if wider else old[:0]
        new[ours] = torch.cat((old[:count], more))
    model.config = replace(model.config, vocab=count)
    table = nn.Embedding(1, 1, device="meta")
    table.num_embeddings, table.embedding_dim = count, shape[1]
    table.weight = nn.Parameter(new[TABLE], requires_grad=False)
    model.embed = table
    if isinstance(model.head, MaskedLMHead):
        top = MaskedLMHead.__new__(MaskedLMHead)
        top.__dict__ = dict(model.head.__dict__)
        top._modules = dict(model.head._modules)
        top.decoder = matrix(new, "head.decoder", count)
        model.head = top
    elif isinstance(model.head, nn.Linear):
        model.head = matrix(new, "head", count)
    if model.config.tied:
        model.tie()
    forget(model, "embed", "head", "head.decoder")
    return True


def matrix(new: Mapping[str, Tensor], path: str, count: int) -> nn.Linear:
    weight = new.get(f"{path}.weight", new[TABLE])
    bias = new.get(f"{path}.bias")
    made = nn.Linear(weight.shape[1], count, bias=False, device="meta")
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return made


def wanted(
    model: Transformer,
    module_names: ModuleNames,
    data: Mapping[str, Any],
    contents: Contents,
    heads: Mapping[str, str],
) -> list[Own]:
    """What is in the file beside changes and a label head, and what `modules_to_save` promises."""
    named = data.get("modules_to_save") or []
    listed = isinstance(named, list) and all(isinstance(name, str) for name in named)
    saved = set(named) if listed else set()
    found: dict[tuple[str, ...], Own] = {}
    promised = [tensor for tensor in module_names.tensors if is_of(tensor, saved)]
    for tensor in (*contents.weights, *promised):
        pair = module_names.tensors[tensor]
        if tensor in heads or tensor in contents.pictures:
            continue
        if tensor not in contents.weights and (is_tied(model, pair) or pair.ours in found):
            continue
        key = contents.weights.get(tensor, f"{PREFIX}{tensor}")
        is_trainable = tensor in promised or tensor.endswith(".bias")
        found[pair.ours] = Own(pair, key, is_trainable, tensor in promised)
    table = found.get((TABLE,))
    both = table is not None and (not table.is_trainable or bool(data.get("ensure_weight_tying")))
    if both and model.config.tied and model.config.head in ("lm", "mlm"):
        assert table is not None
        twin = SCORES[0] if model.config.head == "lm" else SCORES[1]
        pair = Pair(twin, (twin,), "=")
        found.setdefault(pair.ours, replace(table, pair=pair))
    return list(found.values())


def is_of(tensor: str, saved: set[str]) -> bool:
    """Whether `modules_to_save` names the tensor's module, by its path or the end of it."""
    words = tensor.split(".")[:-1]
    ends = {".".join(words[i:k]) for i in range(len(words)) for k in range(i + 1, len(words) + 1)}
    return bool(ends & saved)


def is_tied(model: Transformer, pair: Pair) -> bool:
    return model.config.tied and pair.ours[0] in SCORES[:2]


def shape_of(model: Transformer, pair: Pair) -> tuple[int, ...]:
    """The shape that the family's files have for a tensor."""
    parts = []
    for ours in pair.ours:
        path, _, leaf = ours.rpartition(".")
        module = model.get_submodule(path)
        wide = isinstance(module, nn.Linear) and leaf == "weight"
        size = (module.out_features, module.in_features) if wide else None  # of a quantised one too
        parts.append(torch.empty(size or module.get_parameter(leaf).shape, device="meta"))  # type: ignore[arg-type]
    return tuple(TRANSFORMS[pair.transform].save(model.config, parts).shape)


def misfits_of(
    model: Transformer, whole: list[Own], found: Mapping[str, tuple[int, ...]]
) -> list[str]:
    shapes = {own.key: shape_of(model, own.pair) for own in whole}
    return misfits(shapes, {key: found[key] for key in shapes if key in found})


def copies(
    model: Transformer, whole: list[Own], load: Callable[[str], Tensor], resized: bool
) -> dict[str, Copy]:
    """Copies by the paths of their modules; none of what is the base's own, unless promised, or
    the only place where a resized table is."""
    each: dict[str, dict[str, Tensor]] = {}
    is_trainable: dict[str, bool] = {}
    for own in whole:
        values = TRANSFORMS[own.pair.transform].load(model.config, load(own.key))
        for ours, tensor in zip(own.pair.ours, values, strict=True):
            path, _, leaf = ours.rpartition(".")
            base = getattr(model.get_submodule(path), leaf)
            kept = own.promised or (resized and ours in (TABLE, *SCORES))
            if not kept and torch.equal(tensor.to(base), base):
                continue
            wide = torch.promote_types(torch.float32, torch.promote_types(base.dtype, tensor.dtype))
            tensor = tensor.to(base.device, wide)
            each.setdefault(path, {})[leaf] = tensor.contiguous().clone()
            is_trainable[path] = is_trainable.get(path, False) or own.is_trainable
    return {path: Copy(tensors, is_trainable[path]) for path, tensors in each.items()}


def attach(model: Transformer, name: str, found: Mapping[str, Copy]) -> None:
    for path, copy in found.items():
        insert(model, path, f"{name}/own", copy)


# ---- writing -------------------------------------------------------------------------------------


def there(model: Transformer, name: str) -> dict[str, Copy]:
    return {path: c for path, _, c in changes(model, name) if isinstance(c, Copy)}


def to_file(model: Transformer, name: str, prefix: str) -> dict[str, Tensor]:
    """The copies by the keys of PEFT: under a change a module's own are its base layer's."""
    found = there(model, name)
    if not found:
        return {}
    changed = {path: c for path, _, c in changes(model, name) if not isinstance(c, Copy)}
    ours = {f"{path}.{leaf}": t for path, c in found.items() for leaf, t in c.tensors().items()}
    out = {}
    for tensor, pair in ModuleNames(model).tensors.items():
        if not all(path in ours for path in pair.ours):
            continue
        path, _, leaf = tensor.rpartition(".")
        change = changed.get(pair.ours[0].rpartition(".")[0])
        infix = "" if change is None else "base_layer."
        if isinstance(change, TableRows):
            infix = "token_adapter.base_layer." if not getattr(change, "tied", False) else ""
        values = [ours[path].detach() for path in pair.ours]
        out[f"{prefix}{path}.{infix}{leaf}"] = TRANSFORMS[pair.transform].save(model.config, values)
    return out


def options(model: Transformer, name: str, heads: list[str] | None) -> dict[str, Any]:
    """`modules_to_save` and `bias` of adapter_config.json."""
    module_names, found = ModuleNames(model), there(model, name)
    changed = {path for path, _, c in changes(model, name) if not isinstance(c, Copy)}
    saved, biases = list(heads or []), set()
    modules = {tensor.rpartition(".")[0] for tensor in module_names.tensors}
    for tensor, pair in module_names.tensors.items():
        path, _, leaf = tensor.rpartition(".")
        at = pair.ours[0].rpartition(".")[0]
        copy = found.get(at)
        if copy is None:
            continue
        whole = "weight" in copy.tensors() and copy.is_trainable and at not in changed
        if whole and leaf == "weight":
            end = path.rpartition(".")[2]
            saved.append(end if sum(m.endswith(end) for m in modules) == 1 else path)
        elif not whole and leaf == "bias":
            biases.add(at in changed)
    bias = "none" if not biases else "lora_only" if biases == {True} else "all"
    return {"modules_to_save": sorted(saved) or None, "bias": bias}
