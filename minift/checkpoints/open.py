"""A name or a path in, a model and its tokenizer out."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from minift.checkpoints import download, gguf, safetensors, strict_json
from minift.checkpoints.families import (
    FAMILIES,
    config_from_gguf,
    config_from_json,
    prefix_in,
)
from minift.checkpoints.mapping import HOW, Layout, Pair, fill, is_passed_over, pairs
from minift.errors import ConfigError, FormatError
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.tokenizers import chat
from minift.tokenizers.byte_bpe import ByteBPE
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.wordpiece import WordPiece

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}
MODELS = (".gguf", "/model/")  # how the inside of an asset ends that is a model
KINDS: dict[type, str] = {ByteBPE: "byte-level BPE", WordPiece: "WordPiece"}
CONFIG_LIMIT = 1 << 20
TOKENIZER_LIMIT = 64 << 20
ROPE_FACTORS = "rope_freqs.weight"


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
) -> tuple[Transformer, Tokenizer]:
    """Load `(model, tokenizer)` from a downloaded name, a Hugging Face folder or a `.gguf` file.

    Raises ConfigError for a name that is not here (with the command to type), FormatError for a
    file that is not what it should be. Nothing is fetched, nothing in the files is executed.
    """
    path, wanted = resolve(name), checked_dtype(dtype)
    if path.is_dir():
        model, tokenizer = model_in(path, wanted), tokenizer_in(path)
    else:
        file = gguf.read(path)
        model = model_of(file, wanted)
        tokenizer = ByteBPE.from_gguf(file.metadata, str(path))
    if tokenizer.vocab_size > model.config.vocab:
        found, most = f"{tokenizer.vocab_size:,} tokens", f"{model.config.vocab:,}"
        allowed = f"at most the embedding's {most}"
        raise FormatError(path, "tokenizer", found, allowed, "shape-mismatch")
    model.source = str(name)
    return model.to(device), tokenizer


def load_model(
    name: str | os.PathLike[str], *, dtype: str | torch.dtype = "float32"
) -> Transformer:
    """The model alone, for what needs no tokenizer. Raises as `load` does."""
    path, wanted = resolve(name), checked_dtype(dtype)
    model = model_in(path, wanted) if path.is_dir() else model_of(gguf.read(path), wanted)
    model.source = str(name)
    return model


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    wanted = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted is None or wanted not in DTYPES.values():
        raise ConfigError(f"dtype: found {dtype}, allowed {', '.join(DTYPES)}")
    return wanted


def model_in(folder: Path, dtype: torch.dtype) -> Transformer:
    """The model of a Hugging Face folder."""
    path = folder / "config.json"
    data = read_json(path)
    file = safetensors.read(weights_in(folder))
    config = config_from_json(data, str(path), file.tensors)
    family = FAMILIES[config.family]
    prefix = prefix_in(family, file.tensors)
    return assemble(config, file, family.folder, prefix, str(file.path), dtype)


def model_of(file: gguf.GgufFile, dtype: torch.dtype) -> Transformer:
    """The model of a GGUF file, dequantised."""
    config = gguf_config(file)
    layout = FAMILIES[config.family].gguf
    assert layout is not None
    return assemble(config, file, layout, "", str(file.path), dtype)


def gguf_config(file: gguf.GgufFile) -> ModelConfig:
    shapes = {key: entry.shape for key, entry in file.tensors.items()}
    factors = None
    if math.prod(shapes.get(ROPE_FACTORS, (0,))) in range(1, 4096):
        factors = tuple(file.load(ROPE_FACTORS).flatten().tolist())
    return config_from_gguf(file.metadata, shapes, str(file.path), factors)


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
    near = difflib.get_close_matches(text.lower(), models, 1, cutoff=0.4)
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


def tokenizer_in(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder: tokenizer.json, or an encoder's vocab.txt alone."""
    path, words = folder / "tokenizer.json", folder / "vocab.txt"
    beside = folder / "tokenizer_config.json"
    config = read_json(beside) if beside.exists() else None
    if not path.exists() and words.exists():
        return WordPiece.from_vocab(read_text(words, TOKENIZER_LIMIT), config, str(words))
    data = read_json(path, TOKENIZER_LIMIT)
    model = data.get("model")
    if isinstance(model, dict) and model.get("type") == "WordPiece":
        return WordPiece.from_json(data, config, str(path))
    return ByteBPE.from_json(data, config, str(path))


def read_bytes(path: Path, limit: int) -> bytes:
    """A small file that somebody else made."""
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size <= limit else b""
    except OSError as error:
        raise FormatError(path, "file", error.strerror, "a readable file", "bad-path") from None
    if size > limit:
        raise FormatError(path, "file", f"{size:,} bytes", f"at most {limit:,}", "too-large")
    return data


def read_text(path: Path, limit: int) -> str:
    try:
        return read_bytes(path, limit).decode()
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x} at {error.start:,}"
        raise FormatError(path, "text", found, "UTF-8", "bad-utf8") from None


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, object]:
    """A JSON object from a file that somebody else made."""
    data = read_bytes(path, limit)
    value = strict_json.parse(data, path, "JSON", limit_bytes=limit)
    if not isinstance(value, dict):
        raise FormatError(path, "JSON", type(value).__name__, "an object", "bad-type")
    return value


def assemble(
    config: ModelConfig,
    file: TensorFile,
    layout: Layout,
    prefix: str,
    path: str,
    dtype: torch.dtype,
) -> Transformer:
    """Fill a transformer from a weight file: every tensor used, every parameter filled."""
    if config.layers > len(file.tensors):  # before anything is built from that number
        found = f"{config.layers:,} layers, {len(file.tensors):,} tensors"
        raise FormatError(
            path, "configuration", found, "layers that the file holds", "shape-mismatch"
        )
    with torch.device("meta"):
        model = Transformer(config)
    wanted = {pair.theirs: pair for pair in pairs(layout, config, prefix)}
    copies = {fill(one, prefix): fill(other, prefix) for one, other in layout.copies.items()}
    check_tensors(model, file, wanted, copies, layout, path)
    for name, pair in wanted.items():
        values = HOW[pair.how][0](config, file.load(name))
        for ours, tensor in zip(pair.ours, values, strict=True):
            module, _, leaf = ours.rpartition(".")
            parameter = nn.Parameter(tensor.to(dtype).contiguous())
            setattr(model.get_submodule(module), leaf, parameter)
    if config.tied:
        model.tie()
    return model


def check_tensors(
    model: Transformer,
    file: TensorFile,
    wanted: Mapping[str, Pair],
    copies: Mapping[str, str],
    layout: Layout,
    path: str,
) -> None:
    """The file has what the configuration asks for, in its shapes, and nothing else."""
    parameters = dict(model.named_parameters())
    shapes = {
        name: tuple(HOW[pair.how][1](model.config, [parameters[o] for o in pair.ours]).shape)
        for name, pair in wanted.items()
    }
    problems = [f"missing {name}" for name in wanted if name not in file.tensors]
    problems += [
        f"{name} is {tuple(file.tensors[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in file.tensors and tuple(file.tensors[name].shape) != shape
    ]
    for name in file.tensors:
        if name in wanted or is_passed_over(layout, name):
            continue
        original = copies.get(name)
        if original is None or original not in file.tensors:
            problems.append(f"unexpected {name}")
        elif not torch.equal(file.load(name), file.load(original)):
            problems.append(f"{name} differs from {original}, to which the configuration ties it")
    if problems:
        found = f"{len(problems):,} that do not fit"
        allowed = "exactly those of the configuration"
        raise FormatError(path, "tensors", found, allowed, "shape-mismatch", problems)


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
        place = path / "config.json"
        data, weights = read_json(place), safetensors.read(weights_in(path))
        config = config_from_json(data, str(place), weights.tensors)
        shapes = {key: entry.shape for key, entry in weights.tensors.items()}
        kinds = [str(entry.dtype).removeprefix("torch.") for entry in weights.tensors.values()]
        tokenizer, size = none_or(lambda: tokenizer_in(path)), weights_in(path).stat().st_size
    else:
        file = gguf.read(path)
        shapes = {key: entry.shape for key, entry in file.tensors.items()}
        kinds = [entry.kind for entry in file.tensors.values()]
        config = gguf_config(file)
        tokenizer = none_or(lambda: ByteBPE.from_gguf(file.metadata, str(path)))
        size = path.stat().st_size
    return Survey(
        path=path,
        config=config,
        kinds=kinds,
        parameters=sum(math.prod(shape) for shape in shapes.values()),
        bytes=size,
        tokenizer=tokenizer
        if isinstance(tokenizer, str)
        else f"{KINDS[type(tokenizer)]}, {tokenizer.vocab_size:,} tokens",
        chat="" if isinstance(tokenizer, str) else template_name(tokenizer),
    )


def none_or(make: Callable[[], Tokenizer]) -> Tokenizer | str:
    """The tokenizer, or why there is none."""
    try:
        return make()
    except FormatError as error:
        return f"none that minift reads: {error.where}: {error.detail}"


def template_name(tokenizer: Tokenizer) -> str:
    if tokenizer.template is None:
        return "no template"
    try:
        row = chat.find(tokenizer)
    except ConfigError:
        return "a template that minift does not know: needs --chat-template"
    return next(name for name, known in chat.TEMPLATES.items() if known is row)
