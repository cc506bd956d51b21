"""Prompt tuning in PEFT's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from minift.interop.peft_format import SIZES, Problems, SoftPromptFormat, sizes, soft_tensors, whole
from minift.model.transformer import Transformer
from minift.peft.prompt import Prompt, PromptEmbedding


def read(data: Mapping[str, Any], problems: Problems) -> Prompt:
    return Prompt(whole(data, "num_virtual_tokens", problems), prompt_init="random")


def write(config: Prompt, model: Transformer) -> dict[str, Any]:
    return sizes(model, config.prompt_tokens) | {"prompt_tuning_init": "RANDOM"}


def shapes(model: Transformer, config: Prompt) -> dict[str, tuple[int, ...]]:
    return {"prompt_embeddings": (config.prompt_tokens, model.config.dim)}


@torch.no_grad()
def fill(part: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    assert isinstance(part, PromptEmbedding)
    part.prompt.copy_(tensors["prompt_embeddings"])


FILE = SoftPromptFormat(
    "PROMPT_TUNING",
    read,
    write,
    soft_tensors,
    shapes,
    fill,
    lambda config: config,
    size_keys=("num_virtual_tokens", "token_dim"),
    options=(*SIZES, "prompt_tuning_init"),
    unsupported={"num_transformer_submodules": (1,)},
    ignored=("prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
)
