"""A LoRA as a GGUF file, which llama.cpp adds to a model when it starts (`--lora FILE`).

    general.type "adapter" · general.architecture · adapter.type "lora" · adapter.lora.alpha
    blk.0.attn_q.weight.lora_a (R, in)      blk.0.attn_q.weight.lora_b (out, R)

The rows of B stand in the order of the base's rows in GGUF, which for q and k of a Llama is not
ours. llama.cpp scales by alpha / R and knows no rsLoRA, so alpha is s R, whatever s came from.
Source: llama-adapter.cpp and convert_lora_to_gguf.py of llama.cpp.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from minift.checkpoints.gguf_model import facts, linears
from minift.errors import ConfigError
from minift.formats import gguf, gguf_write
from minift.formats.gguf_write import Value
from minift.formats.overwrite import check_file
from minift.model.transformer import Transformer
from minift.peft import lora
from minift.peft.adapters import config_of
from minift.peft.slots import changes
from minift.storage import Check

KINDS = ("F32", "F16", "BF16")
ARCHITECTURE = "general.architecture"


def attached(model: Transformer) -> dict[str, lora.LoRALayer]:
    """The model's LoRA by the path of its linears; anything else has no place in such a file."""
    found = {}
    config = config_of(model)
    if config is None:
        raise ConfigError("gguf-lora: nothing is attached to the model")
    if not isinstance(config, lora.LoRA) or config.dora or config.lora_bias:
        raise ConfigError(f"gguf-lora: holds LoRA only, not the {config} here")
    for path, _, change in changes(model):
        if not isinstance(change, lora.LoRALayer) or isinstance(change, lora.LoRAHead):
            raise ConfigError(f"gguf-lora: holds linears of the blocks only, not {path}")
        found[path] = change
    return found


def write(
    model: Transformer,
    path: str | os.PathLike[str],
    kind: str = "F32",
    *,
    overwrite: bool = False,
    then: Check | None = None,
) -> None:
    """Write the attached LoRA, whole or not at all; `then` looks at it before it gets its name."""
    if kind not in KINDS:
        raise ConfigError(f'dtype: found "{kind}", allowed {", ".join(KINDS)} for gguf-lora')
    check_file(path, overwrite)
    found, places = attached(model), linears(model.config)
    alphas = {change.scale * change.factors()[0].shape[0] for change in found.values()}
    if len(alphas) > 1:
        raise ConfigError(f"gguf-lora: has one alpha, and here are {len(alphas)}")
    metadata: dict[str, Value] = {"general.type": "adapter"}
    metadata[ARCHITECTURE] = facts(model.config)[ARCHITECTURE]
    if title := Path(model.source).name:
        metadata["general.base_model.0.name"] = title
    metadata |= {"adapter.type": "lora", "adapter.lora.alpha": alphas.pop()}
    tensors: dict[str, Tensor] = {}
    for ours, change in found.items():
        if ours not in places:
            raise ConfigError(f"gguf-lora: {model.config.family} keeps {ours} in another shape")
        place = places[ours]
        A, B = change.factors()
        tensors[f"{place.name}.lora_a"] = A.detach()
        tensors[f"{place.name}.lora_b"] = place.to_file(B.detach())
    kinds = dict.fromkeys(tensors, kind)
    gguf_write.write(path, metadata, tensors, kinds, overwrite=overwrite, then=then)


def read_back(model: Transformer, path: str | os.PathLike[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every linear, as the file at `path` has them."""
    file, places = gguf.read(path), linears(model.config)
    return {
        ours: (
            file.load(f"{places[ours].name}.lora_a"),
            places[ours].from_file(file.load(f"{places[ours].name}.lora_b")),
        )
        for ours in attached(model)
    }
