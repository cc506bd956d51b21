"""Adapter folders as PEFT writes and reads them.

adapter_config.json holds the hyper-parameters, adapter_model.safetensors the tensors, keyed by the
names of the family that the base came from:
`base_model.model.` + `model.layers.0.self_attn.q_proj` + `.lora_A.weight` (R, in).
Both are sorted, so the same adapter gives the same bytes. PEFT ignores a key that it does not
know and leaves a slot empty that it does not find; here both are refused, all of them at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from minift.checkpoints import safetensors, strict_json
from minift.checkpoints.families import FAMILIES
from minift.checkpoints.mapping import pairs
from minift.checkpoints.save import as_json
from minift.errors import ConfigError, FormatError, one_line
from minift.model.transformer import Transformer
from minift.peft import lora
from minift.peft.attach import changes
from minift.peft.methods import attach
from minift.storage import write_folder

PREFIX = "base_model.model."
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
# Options that change the mathematics (or the tensors) and that minift does not have. Each must
# stand at the value that switches it off.
OFF: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (None, False),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "exclude_modules": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None,),
    "layer_replication": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "alora_invocation_tokens": (None,),
    "init_lora_weights": (True, False, "gaussian"),
}
# What says nothing about the mathematics of a plain LoRA.
NEUTRAL = (
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "peft_version"),
    *("auto_mapping", "megatron_config", "megatron_core", "qalora_group_size", "layers_pattern"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
    *("monteclora_config", "arrow_config", "kasa_config", "ensure_weight_tying", "runtime_config"),
)


def names(model: Transformer) -> dict[str, str]:
    """Our path of every linear -> the family's: blocks.0.attn.qkv.q -> model.layers.0...q_proj."""
    family = FAMILIES[model.config.family]
    prefix = "" if model.config.head == "none" else family.prefix
    return {
        pair.ours[0].removesuffix(".weight"): pair.theirs.removesuffix(".weight")
        for pair in pairs(family.folder, model.config, prefix)
        if pair.ours[0].endswith(".weight") and pair.how == "="
    }


def save_adapter(
    model: Transformer, path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Write the attached adapter as a folder that PEFT loads, whole or not at all."""
    theirs = names(model)
    tensors: dict[str, Tensor] = {}
    configs = []
    for ours, _, change in changes(model):
        assert isinstance(change, lora.Change)
        if ours not in theirs:
            raise ConfigError(f"save_adapter: {model.config.family} keeps {ours} in another shape")
        configs.append(change.config)
        tensors[f"{PREFIX}{theirs[ours]}.lora_A.weight"] = change.A.detach().cpu()
        tensors[f"{PREFIX}{theirs[ours]}.lora_B.weight"] = change.B.detach().cpu()
    if not configs:
        raise ConfigError("save_adapter: nothing is attached to the model")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.source,
        "inference_mode": True,
        "r": configs[0].rank,
        "lora_alpha": configs[0].alpha,
        "lora_dropout": configs[0].dropout,
        "use_rslora": configs[0].rslora,
        "target_modules": sorted({theirs[o].rpartition(".")[2] for o, _, _ in changes(model)}),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    written = safetensors.encode(tensors, {"format": "pt"})
    write_folder(path, {CONFIG: as_json(config), TENSORS: written}, overwrite=overwrite)


def adapter_folder(path: str | os.PathLike[str]) -> Path:
    """The adapter's folder: `path` itself, or the one inside a run's folder."""
    folder = Path(path)
    for candidate in (folder, folder / "adapter"):
        if os.path.exists(candidate / CONFIG):  # pathlib's raises for a name that is too long
            return candidate
    if not os.path.exists(folder):
        raise ConfigError(f'no adapter folder "{folder}" here')
    raise ConfigError(f'"{folder}" holds no adapter: neither it nor its adapter/ has {CONFIG}')


def read_config(folder: Path) -> tuple[lora.LoRA, list[str], str]:
    """(LoRA, target modules in the family's words, base model) from adapter_config.json."""
    path = folder / CONFIG
    data = strict_json.read(path)
    if data.get("peft_type") != "LORA":
        raise FormatError(path, "peft_type", data.get("peft_type"), "LORA", "out-of-range")
    problems = [
        f"{key} is {one_line(data[key])}, which minift does not have"
        for key, off in OFF.items()
        if key in data and data[key] not in off
    ]
    known = {*OFF, *NEUTRAL, "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora"}
    problems += [
        f"{key} is {one_line(value)}, an option that minift does not know"
        for key, value in data.items()
        if key not in known and key != "target_modules" and value not in (None, False, [], {})
    ]
    targets = data.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(t, str) for t in targets):
        problems.append(f"target_modules is {one_line(targets)}, not a list of module names")
    rank, alpha = data.get("r"), data.get("lora_alpha")
    dropout, rslora = data.get("lora_dropout", 0.0), data.get("use_rslora", False)
    if type(rank) is not int:
        problems.append(f"r is {one_line(rank)}, not a whole number")
    if type(alpha) not in (int, float):
        problems.append(f"lora_alpha is {one_line(alpha)}, not a number")
    if type(dropout) not in (int, float) or type(rslora) is not bool:
        problems.append("lora_dropout or use_rslora has the wrong type")
    base = data.get("base_model_name_or_path")
    if type(base) is not str and base is not None:
        problems.append(f"base_model_name_or_path is {one_line(base)}, not a text")
    if problems:
        found = f"{len(problems)} options that do not fit"
        raise FormatError(path, "LoRA", found, "a plain LoRA", "unknown-field", problems)
    assert isinstance(targets, list)
    try:
        config = lora.LoRA(rank, float(alpha), float(dropout), rslora)  # type: ignore[arg-type]
    except ConfigError as error:
        raise FormatError(path, "LoRA", str(error), "a LoRA that can be", "out-of-range") from None
    return config, targets, base or ""


def load_adapter(
    model: Transformer, path: str | os.PathLike[str], *, trainable: bool = False
) -> Transformer:
    """Attach an adapter that PEFT or minift wrote. Every tensor is used, every slot is filled.

    Raises FormatError with the whole list otherwise. With `trainable`, training may go on from it;
    without, an adapter whose every B is zero is refused, since it would change nothing.
    """
    folder = adapter_folder(path)
    config, targets, _ = read_config(folder)
    file = safetensors.read(folder / TENSORS)
    theirs, asked = names(model), set(targets)
    matched = {ours: name for ours, name in theirs.items() if asked & ends(name)}
    tensors = {name: file.load(name) for name in file.tensors}
    check(model, folder / TENSORS, config, matched, targets, tensors)
    members = tuple(dict.fromkeys(ours.rpartition(".")[2] for ours in matched))
    full = lora.LoRA(config.rank, config.alpha, config.dropout, config.rslora, members)
    if not trainable and not any(t.any() for n, t in tensors.items() if ".lora_B." in n):
        raise FormatError(
            folder / TENSORS, "lora_B", "zeros only", "an adapter that changes the output", "unsafe"
        )
    attach(model, full)
    with torch.no_grad():
        for ours, _, change in changes(model):
            assert isinstance(change, lora.Change)
            change.A.copy_(tensors[f"{PREFIX}{theirs[ours]}.lora_A.weight"])
            change.B.copy_(tensors[f"{PREFIX}{theirs[ours]}.lora_B.weight"])
            change.requires_grad_(trainable)
    return model


def ends(name: str) -> set[str]:
    """What a module may be called by: a.b.c, b.c and c."""
    parts = name.split(".")
    return {".".join(parts[i:]) for i in range(len(parts))}


def check(
    model: Transformer,
    path: Path,
    config: lora.LoRA,
    matched: Mapping[str, str],
    targets: list[str],
    tensors: Mapping[str, Tensor],
) -> None:
    """Every tensor that the configuration asks for, in its shape, and no other."""
    wanted: dict[str, tuple[int, ...]] = {}
    for ours, name in matched.items():
        linear = model.get_submodule(ours)
        wanted[f"{PREFIX}{name}.lora_A.weight"] = (config.rank, linear.in_features)  # type: ignore[assignment]
        wanted[f"{PREFIX}{name}.lora_B.weight"] = (linear.out_features, config.rank)  # type: ignore[assignment]
    called = set().union(*map(ends, matched.values()))
    problems = [
        f"target_modules: no module of the model is called {target}"
        for target in targets
        if target not in called
    ]
    used = {ours.rpartition(".")[2] for ours in matched}
    problems += [
        f"target_modules leaves out {name}: minift's LoRA stands on every layer"
        for ours, name in names(model).items()
        if ours.rpartition(".")[2] in used and ours not in matched
    ]
    problems += [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if problems:
        found = f"{len(problems)} that do not fit"
        allowed = "the adapter's tensors for this model"
        raise FormatError(path, "tensors", found, allowed, "shape-mismatch", problems)
