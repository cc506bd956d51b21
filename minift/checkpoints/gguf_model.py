"""A model as a GGUF file that llama.cpp and minift load: what it says, and which tensors it holds.

Matrices are stored as the kind asked for, vectors (norms, biases) as F32. Where the kind is Q4_0 or
Q4_1, the embedding and the head are Q8_0: every position goes through both, and they cost little.
The rows of families.py are read backwards here, and nowhere else for GGUF.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from minift.checkpoints.families import FAMILIES, config_from_gguf
from minift.checkpoints.mapping import TRANSFORMS, Layout, pairs, write_fields
from minift.errors import ConfigError, one_line
from minift.formats import gguf_write
from minift.formats.gguf_write import Value
from minift.formats.overwrite import check_file
from minift.kernels.quantized.linear import dense_tensors
from minift.model.config import ModelConfig
from minift.model.rope import frequencies
from minift.model.transformer import Transformer
from minift.storage import Check
from minift.tokenizers import chat, text_format
from minift.tokenizers.byte_bpe import ByteBPE
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.sentencepiece import SentencePiece

FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}  # llama.h
ARCHITECTURE, ROPE_FACTORS = "general.architecture", "rope_freqs.weight"
WIDER = ("token_embd.weight", "output.weight")  # Q8_0 where the others have four bits


def layout_of(config: ModelConfig) -> Layout:
    """How GGUF spells the model's family; ConfigError where there is no such file."""
    layout = FAMILIES[config.family].gguf
    if layout is None or config.head != "lm":
        raise ConfigError(f"gguf: holds language models of some families, not this {config.family}")
    return layout


def facts(config: ModelConfig) -> dict[str, Value]:
    """The architecture and its numbers, in the words of the family."""
    layout, name = layout_of(config), FAMILIES[config.family].gguf_name
    data = write_fields(layout.fields, config)
    for part in layout.parts:
        data |= part.write(config)
    if "attention.key_length" in data:
        data["attention.value_length"] = config.head_dim
    if config.positions == "rope":
        data["rope.dimension_count"] = config.rotated
    named: dict[str, Value] = {ARCHITECTURE: name}
    return named | {f"{name}.{key}": value for key, value in data.items()}


def weights(model: Transformer) -> dict[str, Tensor]:
    """Every parameter under the family's name and in its order."""
    config, parameters = model.config, dense_tensors(model)
    tensors = {}
    for pair in pairs(layout_of(config), config, ""):
        ours = [parameters.pop(name, None) for name in pair.ours]
        there = [x for x in ours if x is not None]
        if len(there) < len(ours):
            raise ConfigError(f"gguf: this {config.family} has no {', '.join(pair.ours)}")
        tensors[pair.theirs] = TRANSFORMS[pair.transform].save(config, there)
    if parameters:
        names = ", ".join(parameters)
        raise ConfigError(f"gguf: {config.family} has no place for {one_line(names, 200)}")
    if config.rope_scaling is not None and config.rope_scaling.kind in ("llama3", "factors"):
        plain = frequencies(replace(config, rope_scaling=None))
        tensors[ROPE_FACTORS] = (plain / frequencies(config)).float()  # divisors
    return tensors


def check(
    config: ModelConfig, metadata: Mapping[str, Value], tensors: Mapping[str, Tensor]
) -> None:
    """The file must say the model: read back, its configuration is the one that was written."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    factors = tensors.get(ROPE_FACTORS)
    listed = None if factors is None else tuple(factors.tolist())
    again = config_from_gguf(metadata, shapes, "the file to write", listed)
    lost = [
        item.name
        for item in fields(ModelConfig)
        if item.name not in ("family", "rope_scaling")
        and not same(getattr(config, item.name), getattr(again, item.name))
    ]
    if lost:
        raise ConfigError(f"gguf: a file cannot say the {', '.join(lost)} of this {config.family}")


def same(one: object, other: object) -> bool:
    """Equal, or equal when rounded to float32, which is what the file holds."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6 * abs(one)
    return one == other or {one, other} == {None, 1.0}


class Place(NamedTuple):
    """Where a linear's weight is: its tensor, and the order of its rows there, both directions."""

    name: str
    to_file: Callable[[Tensor], Tensor]
    from_file: Callable[[Tensor], Tensor]


def linears(config: ModelConfig) -> dict[str, Place]:
    """Our path of every linear that is a tensor of its own -> its place."""
    places = {}
    for pair in pairs(layout_of(config), config, ""):
        if len(pair.ours) == 1 and pair.ours[0].endswith(".weight"):
            to_file, from_file = (
                partial(one_out, pair.transform, config),
                partial(one_in, pair.transform, config),
            )
            places[pair.ours[0].removesuffix(".weight")] = Place(pair.theirs, to_file, from_file)
    return places


def one_out(transform: str, config: ModelConfig, x: Tensor) -> Tensor:
    return TRANSFORMS[transform].save(config, [x])


def one_in(transform: str, config: ModelConfig, x: Tensor) -> Tensor:
    return TRANSFORMS[transform].load(config, x)[0]


def write(
    model: Transformer,
    tokenizer: Tokenizer,
    path: str | os.PathLike[str],
    kind: str,
    *,
    overwrite: bool = False,
    then: Check | None = None,
) -> None:
    """Write the file, whole or not at all; one that is there is replaced only if told.

    `then` looks at the finished file before it gets its name.
    """
    check_file(path, overwrite)
    tensors = weights(model)
    kinds = {name: gguf_write.stored_as(kind, tuple(t.shape)) for name, t in tensors.items()}
    for name in WIDER:
        if kinds.get(name, "").startswith("Q4"):
            kinds[name] = "Q8_0"
    metadata: dict[str, Value] = {"general.type": "model"}
    if title := Path(model.source).name:
        metadata["general.name"] = title
    metadata |= facts(model.config)
    check(model.config, metadata, tensors)
    texts = model.text_format
    if texts is not None:
        tokenizer = text_format.as_trained(tokenizer, texts, os.fspath(path))
        said = texts.by(tokenizer).as_json()
        metadata[text_format.KEY] = json.dumps(said, ensure_ascii=False)
    if not isinstance(tokenizer, ByteBPE | SentencePiece):
        raise ConfigError("gguf: only byte-level BPE and sentencepiece vocabularies can be written")
    metadata |= {"general.file_type": FILE_TYPES[kind], "general.quantization_version": 2}
    metadata |= tokenizer.gguf(model.config.vocab)
    metadata |= ends_of(tokenizer)
    gguf_write.write(path, metadata, tensors, kinds, overwrite=overwrite, then=then)


def ends_of(tokenizer: Tokenizer) -> dict[str, Value]:
    """A token that ends an answer beside EOS: llama.cpp has a key for one, the end of a turn."""
    others = sorted(chat.ends(tokenizer) - {tokenizer.eos})
    if not others:
        return {}
    closing = chat.closing_token(tokenizer)
    return {"tokenizer.ggml.eot_token_id": closing if closing in others else others[0]}
