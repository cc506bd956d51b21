"""A name or a path in, a model and its tokenizer out."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from minift.checkpoints import download, gguf, safetensors, strict_json
from minift.checkpoints.families import (
    FAMILIES,
    HOW,
    Row,
    config_from_gguf,
    config_from_json,
    rows,
)
from minift.errors import ConfigError, FormatError
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.tokenizers import chat
from minift.tokenizers.byte_bpe import ByteBPE

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}
MODELS = (".gguf", "/model/")  # how the inside of an asset ends that is a model
CONFIG_LIMIT = 1 << 20
TOKENIZER_LIMIT = 64 << 20


class Entry(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class TensorFile(Protocol):
    """What a weight file offers, whatever its format."""

    @property
    def tensors(self) -> Mapping[str, Entry]: ...

    def load(self, name: str) -> Tensor: ...


def load(
    name: str | os.PathLike[str], *, dtype: str | torch.dtype = "float32", device: str = "cpu"
) -> tuple[Transformer, ByteBPE]:
    """Load `(model, tokenizer)` from a downloaded name, a Hugging Face folder or a `.gguf` file.

    Raises ConfigError for a name that is not here (with the command to type), FormatError for a
    file that is not what it should be. Nothing is fetched, nothing in the files is executed.
    """
    path, wanted = resolve(name), checked_dtype(dtype)
    if path.is_dir():
        model, tokenizer = model_in(path, wanted), tokenizer_in(path)
    else:
        file = gguf.read(path)
        model, tokenizer = model_of(file, wanted), ByteBPE.from_gguf(file.metadata, str(path))
    if tokenizer.vocab_size > model.config.vocab:
        found, most = f"{tokenizer.vocab_size:,} tokens", f"{model.config.vocab:,}"
        allowed = f"at most the embedding's {most}"
        raise FormatError(path, "tokenizer", found, allowed, "shape-mismatch")
    model.source = str(name)
    return model.to(device), tokenizer


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    wanted = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted is None or wanted not in DTYPES.values():
        raise ConfigError(f"dtype: found {dtype}, allowed {', '.join(DTYPES)}")
    return wanted


def model_in(folder: Path, dtype: torch.dtype) -> Transformer:
    """The model of a Hugging Face folder."""
    path = folder / "config.json"
    config = config_from_json(read_json(path), str(path))
    file = safetensors.read(weights_in(folder))
    return assemble(config, file, FAMILIES[config.family].weights, str(file.path), dtype)


def model_of(file: gguf.GgufFile, dtype: torch.dtype) -> Transformer:
    """The model of a GGUF file, dequantised."""
    shapes = {key: entry.shape for key, entry in file.tensors.items()}
    config = config_from_gguf(file.metadata, shapes, str(file.path))
    return assemble(config, file, FAMILIES[config.family].gguf_weights, str(file.path), dtype)


def resolve(name: str | os.PathLike[str]) -> Path:
    """The file or folder that a name or a path stands for."""
    path = Path(name)
    if path.exists():
        return path
    text = str(name)
    models = [key for key, asset in download.ASSETS.items() if asset.inside.endswith(MODELS)]
    if text in models:
        cached = download.cached(text)
        if cached is None:
            raise ConfigError(f'model "{text}" is not downloaded: minift download {text}')
        return cached
    near = difflib.get_close_matches(text, models, 1)
    hint = f"; nearest: {near[0]}" if near else f"; known: {', '.join(models)}"
    if near and download.cached(near[0]) is None:
        hint += f" (not downloaded: minift download {near[0]})"
    raise ConfigError(f'no model, file or folder "{text}" here{hint}')


def weights_in(folder: Path) -> Path:
    path = folder / "model.safetensors"
    if not path.exists():
        names = ", ".join(sorted(p.name for p in folder.iterdir())) or "an empty folder"
        raise FormatError(folder, "weights", names, "model.safetensors", "missing-field")
    return path


def tokenizer_in(folder: Path) -> ByteBPE:
    """The tokenizer of a Hugging Face folder: tokenizer.json, tokenizer_config.json if there."""
    path = folder / "tokenizer.json"
    beside = folder / "tokenizer_config.json"
    config = read_json(beside) if beside.exists() else None
    return ByteBPE.from_json(read_json(path, TOKENIZER_LIMIT), config, str(path))


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, object]:
    """A JSON object from a file that somebody else made."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= limit else b""
    except OSError as error:
        raise FormatError(path, "file", error.strerror, "a readable file", "bad-path") from None
    if size > limit:
        raise FormatError(path, "file", f"{size:,} bytes", f"at most {limit:,}", "too-large")
    value = strict_json.parse(data, path, "JSON", limit_bytes=limit)
    if not isinstance(value, dict):
        raise FormatError(path, "JSON", type(value).__name__, "an object", "bad-type")
    return value


def assemble(
    config: ModelConfig, file: TensorFile, table: tuple[Row, ...], path: str, dtype: torch.dtype
) -> Transformer:
    """Fill a transformer from a weight file: every tensor used, every parameter filled."""
    if config.layers > len(file.tensors):  # before anything is built from that number
        found = f"{config.layers:,} layers, {len(file.tensors):,} tensors"
        raise FormatError(
            path, "configuration", found, "layers that the file holds", "shape-mismatch"
        )
    with torch.device("meta"):
        model = Transformer(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    wanted = {row.theirs: row for row in rows(table, config)}
    problems = [f"missing {name}" for name in wanted if name not in file.tensors]
    problems += [f"unexpected {name}" for name in file.tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(file.tensors[name].shape)}, not {shapes[row.ours]}"
        for name, row in wanted.items()
        if name in file.tensors and tuple(file.tensors[name].shape) != shapes[row.ours]
    ]
    if problems:
        found = f"{len(problems):,} that do not fit"
        allowed = "exactly those of the configuration"
        raise FormatError(path, "tensors", found, allowed, "shape-mismatch", problems)
    for name, row in wanted.items():
        tensor = HOW[row.how][0](config, file.load(name)).to(dtype).contiguous()
        module, _, leaf = row.ours.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(tensor))
    if config.tied:
        model.head.weight = model.embed.weight
    return model


@dataclass(frozen=True)
class Survey:
    """What a model is made of, read off its headers."""

    path: Path
    config: ModelConfig
    kinds: list[str]  # the stored type of every tensor
    parameters: int
    bytes: int
    tokenizer: str
    chat: str


def survey(name: str | os.PathLike[str]) -> Survey:
    """Look at a model without loading a weight."""
    path = resolve(name)
    if path.is_dir():
        config = config_from_json(read_json(path / "config.json"), str(path / "config.json"))
        weights = safetensors.read(weights_in(path))
        shapes = {key: entry.shape for key, entry in weights.tensors.items()}
        kinds = [str(entry.dtype).removeprefix("torch.") for entry in weights.tensors.values()]
        tokenizer, size = tokenizer_in(path), weights_in(path).stat().st_size
    else:
        file = gguf.read(path)
        shapes = {key: entry.shape for key, entry in file.tensors.items()}
        kinds = [entry.kind for entry in file.tensors.values()]
        config = config_from_gguf(file.metadata, shapes, str(path))
        tokenizer, size = ByteBPE.from_gguf(file.metadata, str(path)), path.stat().st_size
    return Survey(
        path=path,
        config=config,
        kinds=kinds,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        bytes=size,
        tokenizer=f"byte-level BPE, {tokenizer.vocab_size:,} tokens",
        chat=template_name(tokenizer),
    )


def template_name(tokenizer: ByteBPE) -> str:
    if tokenizer.template is None:
        return "no template"
    try:
        row = chat.find(tokenizer)
    except ConfigError:
        return "a template that minift does not know: needs --chat-template"
    return next(name for name, known in chat.TEMPLATES.items() if known is row)
