"""P-tuning in PEFT's files, which hold what the network made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from minift.interop.peft_format import SIZES, Problems, SoftPromptFormat, sizes, soft_tensors, whole
from minift.model.transformer import Transformer
from minift.peft.ptuning import ENCODERS, PromptEncoder, PTuning


def read(data: Mapping[str, Any], problems: Problems) -> PTuning:
    kind = str(data.get("encoder_reparameterization_type", "MLP")).lower()
    if kind not in ENCODERS:
        problems.append(f"encoder_reparameterization_type is {kind}, not MLP or LSTM")
        kind = "mlp"
    hidden = data.get("encoder_hidden_size")
    return PTuning(
        whole(data, "num_virtual_tokens", problems),
        kind,
        whole(data, "encoder_hidden_size", problems) if hidden is not None else 128,
        whole(data, "encoder_num_layers", problems, 2),
    )


def write(config: PTuning, model: Transformer) -> dict[str, Any]:
    return sizes(model, config.ptuning_tokens) | {
        "encoder_reparameterization_type": config.encoder.upper(),
        "encoder_hidden_size": config.encoder_hidden,
        "encoder_num_layers": config.encoder_layers,
        "encoder_dropout": 0.0,
    }


def shapes(model: Transformer, config: PTuning) -> dict[str, tuple[int, ...]]:
    return {"prompt_embeddings": (config.ptuning_tokens, model.config.dim)}


def fill(part: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The file has what the network made, not the network: training goes on from there."""
    assert isinstance(part, PromptEncoder)
    assert part.start is not None
    part.finish(tensors["prompt_embeddings"].to(part.start))


FILE = SoftPromptFormat(
    "P_TUNING",
    read,
    write,
    soft_tensors,
    shapes,
    fill,
    lambda config: replace(config, encoder="mlp", encoder_hidden=1),
    size_keys=("num_virtual_tokens", "token_dim"),
    options=(
        *SIZES,
        *("encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers"),
    ),
    unsupported={"num_transformer_submodules": (1,)},
    ignored=("encoder_dropout",),
)
