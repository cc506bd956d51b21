"""A model and its tokenizer out, as the Hugging Face folder that other programs load."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

import torch
from torch import Tensor

from minift.checkpoints import safetensors
from minift.checkpoints.families import FAMILIES, HOW, config_to_json, rows
from minift.errors import ConfigError
from minift.model.transformer import MLP, Attention, Projections, Transformer
from minift.storage import write_folder
from minift.tokenizers.byte_bpe import ByteBPE

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}


def save(
    model: Transformer,
    tokenizer: ByteBPE,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write config.json, model.safetensors and the tokenizer's files, whole or not at all.

    Raises ConfigError where something is attached to the model (merge first, or save the adapter)
    and where `path` exists; StorageError where the disk refuses.
    """
    if is_changed(model):
        raise ConfigError(
            "save: the model has an adapter attached; merge it first, or save_adapter"
        )
    family = FAMILIES[model.config.family]
    tensors: dict[str, Tensor] = {}
    parameters = dict(model.named_parameters())
    for row in rows(family.weights, model.config):
        tensors[row.theirs] = HOW[row.how][1](model.config, parameters[row.ours].detach()).cpu()
    config = config_to_json(model.config, NAMES[model.embed.weight.dtype])
    generation = {"eos_token_id": tokenizer.eos}
    for name, value in (("bos_token_id", tokenizer.bos), ("pad_token_id", tokenizer.pad)):
        if value is not None:
            generation[name] = value
    files: dict[str, bytes | Iterable[bytes | memoryview]] = {
        "config.json": as_json(config | generation),
        "generation_config.json": as_json(generation),
        "model.safetensors": safetensors.encode(tensors, {"format": "pt"}),
        **tokenizer.files(),
    }
    write_folder(path, files, overwrite=overwrite)


def is_changed(model: Transformer) -> bool:
    """Whether anything hangs on a seam of the model."""
    return any(
        (isinstance(module, Projections) and len(module.changes) > 0)
        or (isinstance(module, Attention | MLP) and module.change is not None)
        for module in model.modules()
    )


def as_json(value: object) -> bytes:
    """Indented, keys sorted: the same value gives the same bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
