"""Adapter folders as AdapterHub's `adapters` 1.2 writes and reads them; bottlenecks only.

    adapter_config.json     about the base and, under `config`, the adapter's options
    adapter.safetensors     tensors by layer, place and the adapter's own NAME:
                            model.layers.0.output_adapters.adapters.NAME.adapter_down.0.weight
    head_config.json        with a head for labels: its class
    model_head.safetensors  and its tensors

Instead of the two safetensors files the library may have written PyTorch's pytorch_adapter.bin and
pytorch_model_head.bin, which are read too. What minift writes it loads with
`load_adapter(folder, use_safetensors=True)`. The names for families that the library does not have
are Llama's; its user must then say in an interface of its own where adapters stand.

The library passes over a key that it does not know and leaves a slot as it was drawn; here both are
refused, all of them at once. An option that minift does not have must stand where it switches
itself off. Beside `config`, what the file says is about where it comes from, and not asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minift.checkpoints.config_json import prefix_in
from minift.checkpoints.families import FAMILIES
from minift.checkpoints.mapping import fill, is_buffer, pairs
from minift.checkpoints.save import as_json
from minift.errors import ConfigError, FormatError, one_line
from minift.formats import safetensors, strict_json, torch_zip
from minift.interop import head
from minift.interop.peft_format import CONFIG, Problems, misfits, number, one
from minift.model.transformer import Transformer
from minift.peft.adapters import config_of, known, use
from minift.peft.bottleneck import SUBLAYERS, Bottleneck
from minift.peft.methods import attach
from minift.peft.slots import changes

VERSION = "adapters.1.2.0"
TENSORS = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_CONFIG, HEAD = "head_config.json", ("model_head.safetensors", "pytorch_model_head.bin")
BEYOND = ("adapter_interface.json", "adapter_fusion_config.json")  # files that change the meaning
SITES = {"attn": "attention_adapters", "mlp": "output_adapters"}  # within a layer
BERT_SITES = {"attn": "attention.output", "mlp": "output"}
LEAVES = {
    "down": "adapter_down.0.weight",
    "down_bias": "adapter_down.0.bias",
    "up": "adapter_up.weight",
    "up_bias": "adapter_up.bias",
}
ACTS = {"relu": "relu", "swish": "silu", "silu": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
ACTS |= {"gelu_pytorch_tanh": "gelu_tanh", "tanh": "tanh"}  # theirs -> ours; the first is written

# Options that `read` looks at; those that minift does not have, with the values that switch them
# off; and those that say nothing once the former are off.
OPTIONS = (
    *("mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "original_ln_before"),
    *("original_ln_after", "residual_before_ln", "is_parallel", "scaling", "dropout"),
)
UNSUPPORTED: Mapping[str, tuple[object, ...]] = {
    "architecture": (None,),
    "ln_before": (False,),
    "ln_after": (False,),
    "use_gating": (False,),
    "inv_adapter": (None,),
    "invertible_adapter": (None,),
    "cross_adapter": (False,),
    "leave_out": (None, []),
    "phm_layer": (False,),
    "stochastic_depth": (None, 0.0, 0),
}
IGNORED = (
    *("init_weights", "init_weights_seed", "adapter_residual_before_ln"),
    *("inv_adapter_reduction_factor", "phm_dim", "phm_c_init", "phm_init_range", "phm_rank"),
    *("phm_bias", "learn_phm", "factorized_phm_W", "factorized_phm_rule", "shared_W_phm"),
    *("shared_phm_rule", "hypercomplex_nonlinearity"),
)


# ---- options -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stored:
    """What adapter_config.json says."""

    folder: Path
    data: Mapping[str, Any]

    @property
    def base(self) -> str:
        """The model that it was trained on."""
        return str(self.data.get("model_name") or "")

    @property
    def classifies(self) -> bool:
        return (self.folder / HEAD_CONFIG).exists() and bool(self.labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of a classifier's labels, in order; none where there is no such head."""
        place = self.folder / HEAD_CONFIG
        table = strict_json.read(place).get("label2id") if place.exists() else None
        if table is None:
            return ()
        if type(table) is not dict or sorted(map(str, table.values())) != sorted(
            map(str, range(len(table)))
        ):
            raise FormatError(place, "label2id", one_line(table), "names to 0, 1, ...", "bad-type")
        return tuple(sorted(table, key=lambda name: int(table[name])))

    def config(self) -> Bottleneck:
        problems: Problems = []
        for key in ("name", "version"):
            if not isinstance(self.data.get(key), str) or not self.data[key]:
                problems.append(f"{key} is {one_line(self.data.get(key))}, not a text")
        for file in BEYOND:
            if (self.folder / file).exists():
                problems.append(f"{file} is there, which minift does not have")
        config = read(self.data["config"], problems)
        if config is None or problems:
            count, allowed = f"{len(problems)} that do not fit", "a bottleneck that minift has"
            path = self.folder / CONFIG
            raise FormatError(path, "options", count, allowed, "unknown-field", problems)
        return config

    def summary(self) -> str:
        return str(self.config())

    def opened(self) -> safetensors.SafetensorsFile | torch_zip.TorchFile:
        return opened(self.folder, TENSORS)


def is_hub(data: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is AdapterHub's; PEFT's has the same name."""
    return "peft_type" not in data and isinstance(data.get("config"), dict)


def read(data: Mapping[str, Any], problems: Problems) -> Bottleneck | None:
    """A Bottleneck from `config`; None where something does not fit."""
    begun = len(problems)
    for key, value in data.items():
        off = UNSUPPORTED.get(key, ())
        if any(type(value) is type(o) and value == o for o in off) or key in IGNORED + OPTIONS:
            continue
        known_or_not = "have" if off else "know"
        problems.append(f"{key} is {one_line(value)}, which minift does not {known_or_not}")
    sublayers = []
    for name, key in zip(SUBLAYERS, ("mh_adapter", "output_adapter"), strict=True):
        if key not in data:
            problems.append(f"{key} is missing")
        if one(data, key, bool, problems):
            sublayers.append(name)
    if len(problems) == begun and not sublayers:
        problems.append("mh_adapter and output_adapter are false: no adapters at all")
    act = data.get("non_linearity")
    if not isinstance(act, str) or act.lower() not in ACTS:
        problems.append(f"non_linearity is {one_line(act)}, not one of {', '.join(ACTS)}")
    values: dict[str, Any] = {
        "design": design_of(data, problems),
        "reduction": number(data, "reduction_factor", problems),
        "bottleneck_act": ACTS.get(str(act).lower()),
        "bottleneck_scale": number(data, "scaling", problems, 1.0),
        "bottleneck_dropout": number(data, "dropout", problems, 0.0),
        "sublayers": tuple(sublayers),
    }
    try:
        return Bottleneck(**values) if len(problems) == begun else None
    except ConfigError as error:
        problems += str(error).splitlines()
        return None


def design_of(data: Mapping[str, Any], problems: Problems) -> str:
    """Which design the four options about norms and residual sums make."""
    flags = {"is_parallel": False, "original_ln_before": False, "original_ln_after": True}
    for key, usual in flags.items():
        found = one(data, key, bool, problems)
        flags[key] = usual if found is None else found
    residual = data.get("residual_before_ln", True)
    if not flags["original_ln_after"]:
        problems.append("original_ln_after is false, which minift does not have")
    if flags["is_parallel"]:
        return "parallel"
    # Without the first norm both values of the residual name the same sum, "post_add" none.
    allowed = (True,) if flags["original_ln_before"] else (True, False)
    if type(residual) is not bool or residual not in allowed:
        problems.append(f"residual_before_ln is {one_line(residual)}, which minift does not have")
    return "pfeiffer" if flags["original_ln_before"] else "houlsby"


def write(config: Bottleneck) -> dict[str, Any]:
    plan, reduction = config.plan, config.plan.reduction
    return {
        "mh_adapter": "attn" in plan.sublayers,
        "output_adapter": "mlp" in plan.sublayers,
        "reduction_factor": int(reduction) if reduction == int(reduction) else reduction,
        "non_linearity": next(theirs for theirs, ours in ACTS.items() if ours == plan.act),
        "original_ln_before": config.design == "pfeiffer",
        "original_ln_after": True,
        "residual_before_ln": True,
        "is_parallel": config.design == "parallel",
        "scaling": float(plan.scale),  # the library refuses a whole number
        "dropout": float(config.bottleneck_dropout),
        "init_weights": "mam_adapter",
    }


# ---- writing -------------------------------------------------------------------------------------


def adapter_files(model: Transformer, name: str) -> dict[str, Any]:
    """The folder's files."""
    config, family = config_of(model, name), FAMILIES[model.config.family]
    assert isinstance(config, Bottleneck)
    prefix = "" if model.config.head == "none" else family.prefix
    found = {path: change for path, _, change in changes(model, name)}
    tensors = {
        key: plain(found[path].get_parameter(leaf))
        for key, (path, leaf, _) in slots(model, config, name, prefix).items()
    }
    about = {
        "hidden_size": model.config.dim,
        "model_class": next(c for c, kind in family.heads.items() if kind == model.config.head),
        "model_name": model.source,
        "model_type": family.name,
        "version": VERSION,
    }
    files: dict[str, Any] = {
        CONFIG: as_json(about | {"name": name, "config": write(config)}),
        TENSORS[0]: safetensors.encode(tensors, {"format": "pt"} | safetensors.MARK),
    }
    own = {key: plain(p) for key, p in head.tensors(model, name).items()}
    if own:
        labels = {label: i for i, label in enumerate(model.config.labels)}
        about |= {"name": None, "config": None, "num_labels": len(labels), "label2id": labels}
        files[HEAD_CONFIG] = as_json(about)
        files[HEAD[0]] = safetensors.encode(own, {"format": "pt"} | safetensors.MARK)
    return files


def plain(parameter: Tensor) -> Tensor:
    return parameter.detach().cpu().contiguous()


def slots(
    model: Transformer, config: Bottleneck, name: str, prefix: str
) -> dict[str, tuple[str, str, tuple[int, ...]]]:
    """Every tensor of the file: its key -> (path of our change, its parameter, shape)."""
    family, D = FAMILIES[model.config.family], model.config.dim
    R = config.plan.width(D)
    shapes = {"down": (R, D), "down_bias": (R,), "up": (D, R), "up_bias": (D,)}
    first = next(row.theirs for row in family.folder.weights if "{i}" in row.theirs)
    layer, site = first.partition("{i}")[0] + "{i}", SITES
    if family.name in ("bert", "roberta"):
        site = BERT_SITES
    return {
        f"{fill(layer, prefix, i)}.{site[place]}.adapters.{name}.{LEAVES[leaf]}": (
            f"blocks.{i}.{place}",
            leaf,
            shape,
        )
        for i in range(model.config.layers)
        for place in SUBLAYERS
        if place in config.plan.sublayers
        for leaf, shape in shapes.items()
    }


# ---- reading -------------------------------------------------------------------------------------


def load(model: Transformer, found: Stored, *, name: str, trainable: bool) -> Transformer:
    """Attach it: every tensor used, every slot filled, or a FormatError and nothing attached."""
    config, file = found.config(), found.opened()
    prefix = prefix_in(FAMILIES[model.config.family], file.tensors)
    wanted = slots(model, config, found.data["name"], prefix)
    shapes = {key: shape for key, (_, _, shape) in wanted.items()}
    tensors = fitting(file, shapes)
    own = own_head(model, found.folder)
    up = [tensors[key] for key, (_, leaf, _) in wanted.items() if leaf in ("up", "up_bias")]
    if not trainable and not own and not any(bool(tensor.any()) for tensor in up):
        text, allowed = "an adapter that changes nothing", "one that changes the output"
        raise FormatError(file.path, "tensors", text, allowed, "unsafe")
    attach(model, config, name=name)
    there = {path: change for path, _, change in changes(model, name)}
    with torch.no_grad():
        for key, (path, leaf, _) in wanted.items():
            there[path].get_parameter(leaf).copy_(tensors[key])
        if own:
            for key, parameter in head.tensors(model, name).items():
                parameter.copy_(own[key])
    known(model, name, "load_adapter").is_trainable[name] = trainable
    return use(model, name)


def opened(
    folder: Path, choices: tuple[str, str]
) -> safetensors.SafetensorsFile | torch_zip.TorchFile:
    """The one of two files that is there."""
    there = [file for file in choices if (folder / file).exists()]
    if len(there) != 1:
        text, allowed = " and ".join(there) or "none", f"one of {' and '.join(choices)}"
        raise FormatError(folder, "tensors", text, allowed, "missing-field")
    path = folder / there[0]
    return safetensors.read(path) if path.suffix == ".safetensors" else torch_zip.read(path)


def fitting(
    file: safetensors.SafetensorsFile | torch_zip.TorchFile, wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    """The file's tensors: exactly those, in their shapes, finite numbers all."""
    problems = misfits(wanted, {key: tuple(entry.shape) for key, entry in file.tensors.items()})
    problems += [
        f"{key} is {entry.dtype}, not floating point"
        for key, entry in file.tensors.items()
        if tuple(entry.shape) == wanted.get(key) and not entry.dtype.is_floating_point
    ]
    if problems:
        count, allowed = f"{len(problems)} that do not fit", "the adapter's tensors for this model"
        raise FormatError(file.path, "tensors", count, allowed, "shape-mismatch", problems)
    tensors = {key: file.load(key) for key in wanted}
    bad = [key for key, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise FormatError(file.path, bad[0], "NaN or infinity", "finite numbers", "out-of-range")
    return tensors


def own_head(model: Transformer, folder: Path) -> dict[str, Tensor]:
    """The head's tensors for a model with labels, by the family's names; none without head files.

    Another model's head is the base's: the library writes it beside the adapter, and it must then
    hold the base's very numbers.
    """
    there = [file for file in (HEAD_CONFIG, *HEAD) if (folder / file).exists()]
    if not there:
        return {}
    problems = []
    data = strict_json.read(folder / HEAD_CONFIG)
    kind = data.get("config", {})
    if kind is not None:
        problems.append(f"config is {one_line(kind)}, not null: a head that no model of minift has")
    labels, own = data.get("label2id"), {label: i for i, label in enumerate(model.config.labels)}
    named = type(labels) is dict and set(labels) != {f"LABEL_{i}" for i in range(len(labels))}
    if own and named and labels != own:
        problems.append(f"label2id is {one_line(labels)}, not {one_line(own)}")
    if problems:
        problems.append(f"without {', '.join(there)} the folder would be the adapter alone")
        where, allowed = folder / HEAD_CONFIG, "the head of the model at hand"
        raise FormatError(where, "head", "another one", allowed, "unknown-field", problems)
    file = opened(folder, HEAD)
    if own:
        theirs = {key: model.get_parameter(ours) for ours, key in head.theirs(model).items()}
        return fitting(file, {key: tuple(p.shape) for key, p in theirs.items()})
    base = dict(base_head(model))
    layout = FAMILIES[model.config.family].folder
    keys = [key for key in file.tensors if key in base or not is_buffer(layout, key)]
    for key in keys:
        same = key in base and tuple(file.tensors[key].shape) == tuple(base[key].shape)
        if not same or not torch.equal(file.load(key).to(base[key]), base[key]):
            problems.append(f"{key} is not the base's")
    if problems:
        count, allowed = f"{len(problems)} of its own", "the base's head, or no head files"
        raise FormatError(file.path, "head", count, allowed, "unknown-field", problems)
    return {}


def base_head(model: Transformer) -> Iterator[tuple[str, Tensor]]:
    """The family's names for what stands on the body -> the base's tensors, tied ones included."""
    family = FAMILIES[model.config.family]
    table = {
        pair.theirs: model.get_parameter(pair.ours[0]).detach()
        for pair in pairs(family.folder, model.config, family.prefix)
        if pair.transform == "="
    }
    for key, source in family.folder.tied_copies.items():
        if fill(source, family.prefix) in table:
            table.setdefault(key, table[fill(source, family.prefix)])
    return ((key, tensor) for key, tensor in table.items() if not key.startswith(family.prefix))
