"""Prefix tuning in PEFT's files, which hold the keys and values themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from minift.interop.peft_format import SIZES, Problems, SoftPromptFormat, one, sizes, whole
from minift.model.transformer import Transformer
from minift.peft.prefix import Prefix, PrefixEncoder


def read(data: Mapping[str, Any], problems: Problems) -> Prefix:
    projected = one(data, "prefix_projection", bool, problems)
    hidden = whole(data, "encoder_hidden_size", problems) if projected else 0
    return Prefix(whole(data, "num_virtual_tokens", problems), hidden)


def write(config: Prefix, model: Transformer) -> dict[str, Any]:
    shape = model.config
    heads = {"num_attention_heads": shape.kv_heads, "token_dim": shape.kv_heads * shape.head_dim}
    return (
        sizes(model, config.prefix_tokens)
        | heads
        | {
            "prefix_projection": config.prefix_mlp > 0,
            "encoder_hidden_size": config.prefix_mlp or None,
        }
    )


def to_file(model: Transformer, part: nn.Module) -> dict[str, Tensor]:
    assert isinstance(part, PrefixEncoder)
    return {"prompt_embeddings": part.flat()}


def shapes(model: Transformer, config: Prefix) -> dict[str, tuple[int, ...]]:
    shape = model.config
    numbers = 2 * shape.layers * shape.kv_heads * shape.head_dim
    return {"prompt_embeddings": (config.prefix_tokens, numbers)}


def fill(part: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The file has what the network made, not the network: training goes on from there."""
    assert isinstance(part, PrefixEncoder)
    part.finish(tensors["prompt_embeddings"].to(part.start))


FILE = SoftPromptFormat(
    "PREFIX_TUNING",
    read,
    write,
    to_file,
    shapes,
    fill,
    lambda config: replace(config, prefix_mlp=0),
    size_keys=("num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"),
    options=(*SIZES, "prefix_projection", "encoder_hidden_size"),
    unsupported={"num_transformer_submodules": (1,)},
    ignored=("init_weights",),
)
