"""config.json both ways: which family and head it is of, and ModelConfig from it and to it.

What it leaves unsaid is read off the tensors of its folder, where they leave no doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from minift.checkpoints.families import FAMILIES, family_of
from minift.checkpoints.mapping import (
    REQUIRED,
    Family,
    Values,
    build,
    check_fixed,
    fill,
    flags,
    read_fields,
    renamed,
    write_fields,
)
from minift.errors import FormatError, notice, one_line
from minift.model.config import ModelConfig

# What a configuration with another inside of it says for both.
OUTER = ("architectures", "id2label", "num_labels", "tie_word_embeddings", "quantization_config")


def config_from_json(
    data: Mapping[str, Any], path: str, names: Mapping[str, object] | None = None
) -> ModelConfig:
    """ModelConfig from a parsed config.json; `names` are the tensors that its folder has."""
    names = names or {}
    family, data = recognised(data, names, path)
    layout = family.folder
    found = bare(family, names)
    check_quantised(data, path)
    check_fixed(layout.must_be, data, path)
    values: Values = {"family": family.name, "head": "none", **family.fixed}
    values |= read_fields(layout.fields, data, path)
    head = head_of(family, data, found, values["tied"], path)
    prefixed = bool(prefix_in(family, names))
    values["head"] = head if prefixed else head_there(family, head, found, values["tied"], path)
    if values["head"] == "label" and data.get("id2label") is data.get("num_labels") is None:
        data = {**data, "num_labels": counted_labels(family, names)}
    for part in layout.parts:
        values |= part.read(data, values, path)
    values |= flags(layout, found, values["head"])
    values["tied"] = values["tied"] and values["head"] in ("lm", "mlm")
    return build(values, path)


def recognised(
    data: Mapping[str, Any], names: Mapping[str, object], path: str
) -> tuple[Family, Mapping[str, Any]]:
    """The family of a config.json, and the part of it that is ours.

    A larger model names our part by a key (Gemma 3 with vision: text_config). Without a model_type
    the class tells the family, else the tensors do, where they leave no doubt.
    """
    name = data.get("model_type")
    for family in FAMILIES.values():
        if not isinstance(name, str) or name not in family.within:
            continue
        key = family.within[name]
        text = data.get(key) or {}
        if not isinstance(text, dict) or text.get("model_type", family.name) != family.name:
            raise FormatError(path, key, text, f"a configuration of {family.name}", "bad-type")
        return family, text | {key: data[key] for key in OUTER if data.get(key) is not None}
    if name is not None or "model_type" in data:
        return family_of(name, FAMILIES, path, "model_type"), data
    classes = data.get("architectures")
    one = classes[0] if isinstance(classes, list) and classes else None
    by_class = [f for f in FAMILIES.values() if one in (*f.heads, *f.bodies)]
    known = by_class or [f for f in FAMILIES.values() if holds_body(f, data, names)]
    if len(known) != 1:
        return family_of(name, FAMILIES, path, "model_type"), data
    reason = "its class" if by_class else "its keys and tensors"
    notice(path, f"names no model_type: read as {known[0].name}, by {reason}")
    return known[0], data


def holds_body(family: Family, data: Mapping[str, Any], names: Mapping[str, object]) -> bool:
    """Whether these are the tensors of the family's first layer, and the keys of its sizes."""
    first = next(row.theirs for row in family.folder.weights)
    sizes = all(row.theirs in data for row in family.folder.fields if row.null is REQUIRED)
    body = [row.theirs for row in family.folder.weights if "{p}" in row.theirs and not row.when]
    found = bare(family, names)
    if not sizes or not all(fill(name, "") in found for name in body):
        return False
    if fill(first, family.prefix) in names:
        return True
    return all(data.get(key) == value for key, value in family.marks.items())


def bare(family: Family, names: Iterable[str]) -> set[str]:
    """The names of tensors without the prefix, be it there, missing or there twice."""
    found = {renamed(family.folder, name) for name in names}
    for _ in range(2):
        found |= {name.removeprefix(family.prefix) for name in found}
    return found


def check_quantised(data: Mapping[str, Any], path: str) -> None:
    """Refuse weights that are stored in another program's few bits, and say what to do."""
    how = data.get("quantization_config")
    if how is None:
        return
    method = how.get("quant_method") if isinstance(how, dict) else None
    bits = how.get("bits") if isinstance(how, dict) else how
    found = f"{one_line(method or 'an unknown method', 40)}" + (f", {bits} bits" if bits else "")
    allowed = "weights in float32, float16 or bfloat16 (take the model's own folder, and --base nf4"
    raise FormatError(
        path, "quantization_config", found, f"{allowed} or int8), or a .gguf file", "out-of-range"
    )


def head_of(family: Family, data: Mapping[str, Any], found: set[str], tied: bool, path: str) -> str:
    """The kind of head that the configuration's class has; without a class, which one is there."""
    classes = data.get("architectures")
    if classes is None or classes == []:
        head = next(iter(family.heads.values()))
        there = not found or found.issuperset(head_names(family, head, tied))
        return head if there else "none"
    known = ", ".join((*family.heads, *family.bodies))
    if not isinstance(classes, list) or not isinstance(classes[0], str):
        raise FormatError(path, "architectures", classes, known, "bad-type")
    if classes[0] in family.bodies:
        return "none"
    if classes[0] not in family.heads:
        raise FormatError(path, "architectures", classes[0], known, "out-of-range")
    return family.heads[classes[0]]


def head_names(family: Family, head: str, tied: bool) -> list[str]:
    """The tensors of a head alone."""
    rows = [row for row in family.folder.weights if row.ours.startswith("head.")]
    left_out = {"!tied"} if tied else set()
    return [
        row.theirs
        for row in rows
        if f"head={head}" in row.when.split() and not left_out & set(row.when.split())
    ]


def head_there(family: Family, head: str, found: set[str], tied: bool, path: str) -> str:
    """The head, or none in a body that kept the name of a class: no prefix, nothing of a head."""
    own = head_names(family, head, tied)
    if not found or not own or found.intersection(own):
        return head
    notice(path, "names a class with a head, and the weights have none: the model has no head")
    return "none"


def counted_labels(family: Family, names: Mapping[str, object]) -> int:
    """How many outputs the label head of a file has, which says nothing of labels; else 2."""
    out = next(row.theirs for row in family.folder.weights if row.ours == "head.out.weight")
    return next(iter(getattr(names.get(out), "shape", ())), 2)


def prefix_in(family: Family, names: Iterable[str]) -> str:
    """The prefix of a file's tensors: none where the model was saved without a head."""
    there = (renamed(family.folder, name).startswith(family.prefix) for name in names)
    return family.prefix if any(there) else ""


def config_to_json(config: ModelConfig, dtype: str) -> Values:
    """config.json as the family's other readers expect it."""
    family = FAMILIES[config.family]
    data: Values = {
        "architectures": [next(c for c, head in family.heads.items() if head == config.head)],
        "model_type": family.name,
        "torch_dtype": dtype,
        "use_cache": True,
        "tie_word_embeddings": config.tied,
    }
    data |= {key: value for key, value in family.folder.must_be.items() if value is not None}
    data |= write_fields(family.folder.fields, config)
    for part in family.folder.parts:
        data |= part.write(config)
    return {key: value for key, value in data.items() if " / " not in key}
