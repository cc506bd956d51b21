"""A model and its tokenizer out, as the folder or the GGUF file that other programs load."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from minift.checkpoints import gguf_model
from minift.checkpoints.config_json import config_to_json
from minift.checkpoints.families import FAMILIES
from minift.checkpoints.mapping import TRANSFORMS, fill, pairs
from minift.errors import ConfigError
from minift.formats import safetensors
from minift.formats.overwrite import MODEL, own_files
from minift.kernels.quantized.linear import dense_tensors
from minift.model.finite import check_finite
from minift.model.on_meta import on_meta
from minift.model.transformer import Transformer
from minift.storage import Check, write_folder
from minift.tokenizers import chat, text_format
from minift.tokenizers.interface import Tokenizer

NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float64: "float64"}


def save(
    model: Transformer,
    tokenizer: Tokenizer,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    then: Check | None = None,
) -> None:
    """Write a Hugging Face folder, or a GGUF file where `path` ends so; whole or not at all.

    The folder holds config.json, model.safetensors and the tokenizer's files; the file is F32, or
    BF16 where the model is (`export` has the other kinds). A base in few bits is written as the
    values that it computes with: the saved model says the same, at its dense size. Raises
    ConfigError where something is attached to the model (merge first, or save the adapter), where
    a weight is not finite and where `path` exists; StorageError where the disk refuses. `then`
    looks at what was written before it gets its name, and what it raises leaves nothing behind.
    """
    if is_changed(model):
        raise ConfigError(
            "save: the model has an adapter attached; merge it first, or save_adapter"
        )
    if os.fspath(path).endswith(".gguf"):
        kind = "BF16" if model.embed.weight.dtype == torch.bfloat16 else "F32"
        gguf_model.write(model, tokenizer, path, kind, overwrite=overwrite, then=then)
        return
    texts = model.text_format
    if texts is not None:
        tokenizer = text_format.as_trained(tokenizer, texts, os.fspath(path))
    ends = sorted(chat.ends(tokenizer), key=lambda i: (i != tokenizer.eos, i))
    generation: dict[str, int | list[int]] = {"eos_token_id": ends if ends[1:] else tokenizer.eos}
    for name, value in (("bos_token_id", tokenizer.bos), ("pad_token_id", tokenizer.pad)):
        if value is not None:
            generation[name] = value
    files = folder_files(model, generation) | tokenizer.files()
    if texts is not None:
        files[text_format.FILE] = as_json({"texts": texts.by(tokenizer).as_json()})
    write_folder(path, files, overwrite=overwrite, ours=own_files(MODEL), then=then)


def target_names(path: str | os.PathLike[str]) -> re.Pattern[str] | None:
    """The names that `save` may find in the folder `path`; None where it writes a file."""
    return None if os.fspath(path).endswith(".gguf") else MODEL


def folder_files(
    model: Transformer, roles: Mapping[str, int | list[int]]
) -> dict[str, bytes | Iterable[bytes | memoryview]]:
    """config.json, generation_config.json and the weights; `roles` are the ids of bos, eos (all
    that end an answer), pad."""
    family = FAMILIES[model.config.family]
    tensors: dict[str, Tensor] = {}
    parameters = dense_tensors(model)
    prefix = "" if model.config.head == "none" else family.prefix
    for pair in pairs(family.folder, model.config, prefix):
        parts = [parameters[ours] for ours in pair.ours]
        tensors[pair.theirs] = TRANSFORMS[pair.transform].save(model.config, parts).cpu()
    if model.config.head == "mlm" and not model.config.tied:
        for (
            one,
            other,
        ) in family.folder.tied_copies.items():  # the bias, whose readers tie it or do not
            if fill(one, prefix) not in tensors:
                tensors[fill(one, prefix)] = tensors[fill(other, prefix)].clone()
    check_finite("save", tensors.items())
    config = config_to_json(model.config, NAMES[model.embed.weight.dtype])
    return {
        "config.json": as_json(dict(roles) | config),
        "generation_config.json": as_json(dict(roles)),
        "model.safetensors": safetensors.encode(tensors, {"format": "pt"} | safetensors.MARK),
    }


def is_changed(model: Transformer) -> bool:
    """Whether the model has parameters that its configuration knows nothing of."""
    own = {name for name, _ in on_meta(model.config).named_parameters()}
    return any(name not in own for name, _ in model.named_parameters())


def as_json(value: object) -> bytes:
    """Indented, keys sorted: the same value gives the same bytes."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
