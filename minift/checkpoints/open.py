"""A name or a path in, a model and its tokenizer out."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from minift.checkpoints import frozen_base, shards
from minift.checkpoints.config_json import config_from_json, prefix_in
from minift.checkpoints.families import FAMILIES, config_from_gguf
from minift.checkpoints.hub import assets, cache
from minift.checkpoints.mapping import TRANSFORMS, Layout, pairs
from minift.checkpoints.tensor_names import NamedFile, TensorFile, check_tensors, named, settled
from minift.checkpoints.tokenizers import (
    KINDS,
    ends_in,
    template_name,
    text_format_in,
    text_format_of,
    tokenizer_in,
    tokenizer_of,
)
from minift.errors import ConfigError, FormatError, one_line
from minift.formats import gguf_split, strict_json
from minift.formats.gguf import GgufFile
from minift.formats.gguf_split import SplitFile
from minift.formats.overwrite import METRICS, MODEL_FOLDER
from minift.kernels.quantized.linear import OWN, base_of
from minift.kernels.quantized.reference import BLOCKS
from minift.model.config import ModelConfig
from minift.model.on_meta import on_meta
from minift.model.transformer import Transformer
from minift.runtime import trim_memory
from minift.tokenizers import text_format
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.text_format import TextFormat

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float64": torch.float64}
MODELS = (".gguf", "/model/")  # how the inside of an asset ends that is a model
ROPE_FACTORS = "rope_freqs.weight"
FACTORS_LIMIT = 4096


def load(
    name: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "float32",
    device: str = "cpu",
    base: str | None = None,
) -> tuple[Transformer, Tokenizer]:
    """Load `(model, tokenizer)`. Nothing is fetched, nothing in the files is executed.

    `name` is a downloaded name, `org/name` of the Hugging Face cache, a Hugging Face folder or its
    weight file (safetensors, or PyTorch's .bin, each alone or in shards), or a `.gguf` file.
    With `base` the linears of the blocks are frozen and stored in few bits, one after the other as
    they are read: "int8", "nf4", or "gguf", which keeps a file's own blocks; embedding, head and
    norms stay dense. `dtype` is what the model computes in.
    Raises ConfigError for a name that is not here (with the command to type), FormatError for a
    file that is not what it should be.
    """
    wanted, kind, found = checked_dtype(dtype), frozen_base.checked(base), headers(name)
    tokenizer = found.tokenizer()
    check_fit(tokenizer, found)
    model = found.model(wanted, kind).to(device)
    model.text_format = found.text_format()
    if model.text_format is not None:
        text_format.apply(tokenizer, model.text_format)
    return model, tokenizer


def load_model(
    name: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "float32",
    base: str | None = None,
) -> Transformer:
    """The model alone, for what needs no tokenizer. Raises as `load` does."""
    wanted, kind = checked_dtype(dtype), frozen_base.checked(base)
    return headers(name).model(wanted, kind)


def check_fit(tokenizer: Tokenizer, found: Headers) -> None:
    """Every token has a row of the embedding."""
    if tokenizer.vocab_size > found.config.vocab:
        tokens, most = f"{tokenizer.vocab_size:,} tokens", f"{found.config.vocab:,}"
        allowed = f"at most the embedding's {most} (take the tokenizer files of this very model)"
        raise FormatError(found.path, "tokenizer", tokens, allowed, "shape-mismatch")


def checked_dtype(dtype: str | torch.dtype) -> torch.dtype:
    wanted = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if wanted is None or wanted not in DTYPES.values():
        raise ConfigError(f"dtype: found {dtype}, allowed {', '.join(DTYPES)}")
    return wanted


@dataclass(frozen=True)
class Headers:
    """A checkpoint of which all has been read but the weights, and those are mapped."""

    name: str
    path: Path  # the file or the folder
    config: ModelConfig
    weights: TensorFile
    layout: Layout
    prefix: str
    files: list[Path]  # that hold weights
    ignored: list[str] = field(default_factory=list)  # weights in another format beside them
    metadata: Mapping[str, object] | None = None  # of a GGUF file

    def model(self, dtype: torch.dtype, base: str | None = None) -> Transformer:
        place, config, weights = str(self.weights.path), self.config, self.weights
        if base == "gguf" and self.metadata is None:
            allowed = ", ".join(OWN)
            raise ConfigError(
                f"base: gguf keeps a .gguf file's blocks, {place} is none; allowed {allowed}"
            )
        check_tensors(config, weights, self.layout, self.prefix, place)
        if isinstance(weights, NamedFile):
            config, weights = settled(config, weights, self.layout, self.prefix, place)
        model = assemble(config, weights, self.layout, self.prefix, place, dtype, base)
        model.source = self.name
        return model

    def tokenizer(self) -> Tokenizer:
        if self.metadata is not None:
            return tokenizer_of(self.metadata, str(self.path))
        tokenizer = tokenizer_in(self.path, self.config.family)
        tokenizer.also_ends = ends_in(self.path, tokenizer)
        return tokenizer

    def text_format(self) -> TextFormat | None:
        """How the run that trained the model made its texts, where one did."""
        if self.metadata is not None:
            return text_format_of(self.metadata, str(self.path))
        return text_format_in(self.path)


def headers(name: str | os.PathLike[str]) -> Headers:
    """Find a checkpoint and read its headers and its configuration."""
    path = resolve(name)
    if path.is_dir():
        ggufs = gguf_split.models_in(path)
        if (path / "config.json").exists() or not ggufs:
            weights, others = shards.weights_of(path)
            others += [file.name for file in ggufs]
            return in_folder(str(name), path, weights, others)
        if len(ggufs) > 1:
            names = ", ".join(file.name for file in ggufs[:8])
            raise ConfigError(f"{path}: holds {len(ggufs)} models, name one of them: {names}")
        path = ggufs[0]
    elif path.name.endswith(shards.ENDS):
        return in_folder(str(name), path.parent, shards.open_file(path), [])
    file = gguf_split.read(path)
    config = gguf_config(file)
    layout = FAMILIES[config.family].gguf
    assert layout is not None
    files = file.files if isinstance(file, SplitFile) else [path]
    return Headers(str(name), path, config, file, layout, "", files, metadata=file.metadata)


def in_folder(name: str, folder: Path, weights: shards.WeightFile, ignored: list[str]) -> Headers:
    path = folder / "config.json"
    config = config_from_json(strict_json.read(path), str(path), weights.tensors)
    family = FAMILIES[config.family]
    prefix = prefix_in(family, weights.tensors)
    file = named(family, config, weights, prefix)
    return Headers(name, folder, config, file, family.folder, prefix, weights.files, ignored)


def gguf_config(file: GgufFile | SplitFile) -> ModelConfig:
    shapes = {key: entry.shape for key, entry in file.tensors.items()}
    factors = None
    if ROPE_FACTORS in shapes:
        if math.prod(shapes[ROPE_FACTORS]) > FACTORS_LIMIT:
            found, allowed = shapes[ROPE_FACTORS], f"at most {FACTORS_LIMIT:,} numbers"
            raise FormatError(file.path, ROPE_FACTORS, found, allowed, "limit")
        factors = tuple(file.load(ROPE_FACTORS).flatten().tolist())
    return config_from_gguf(file.metadata, shapes, str(file.path), factors)


def resolve(name: str | os.PathLike[str]) -> Path:
    """The file or folder that a name or a path stands for."""
    path, text = Path(name), str(name)
    try:
        if path.exists():
            return model_of_run(path) or path
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise ConfigError(f"{one_line(text, 60)}: {os.strerror(error.errno or 0)}") from None
    models = [key for key, asset in assets.ASSETS.items() if asset.inside.endswith(MODELS)]
    if text in models:
        cached = assets.cached(text)
        if cached is None:
            raise ConfigError(f'model "{text}" is not downloaded: minift download {text}')
        return cached
    if is_hub_name(text):
        found = cache.cached(text) or assets.cached_hub(text)
        if found is None:
            where = cache.cache_dir()
            raise ConfigError(
                f"{text} is no path, and not whole in {where}: minift download {text}"
            )
        return found
    near = difflib.get_close_matches(text.lower(), models, 1, cutoff=0.4)
    hint = f"; nearest: {near[0]}" if near else f"; known: {', '.join(models)}"
    if near and assets.cached(near[0]) is None:
        hint += f" (not downloaded: minift download {near[0]})"
    raise ConfigError(f'no model, file or folder "{one_line(text)}" here{hint}')


def model_of_run(folder: Path) -> Path | None:
    """The model that a run left in its folder, where it trained no adapter."""
    inside = folder / MODEL_FOLDER
    of_run = os.path.exists(folder / METRICS) and os.path.exists(inside / "config.json")
    return inside if of_run and not os.path.exists(folder / "config.json") else None


def is_hub_name(text: str) -> bool:
    """Whether it can be meant as `org/name`, `org/name@revision` or `org/name/file.gguf`."""
    try:
        return "/" in text and cache.Name.parse(text) is not None
    except ConfigError:
        return False


def assemble(
    config: ModelConfig,
    file: TensorFile,
    layout: Layout,
    prefix: str,
    path: str,
    dtype: torch.dtype,
    base: str | None = None,
) -> Transformer:
    """Fill a transformer from a weight file that has what `check_tensors` asks for."""
    model = on_meta(config)
    wanted = {pair.theirs: pair for pair in pairs(layout, config, prefix)}
    small = frozen_base.weights(model) if base is not None else set()
    for name, pair in wanted.items():
        kind = frozen_base.kind_of(base, pair, file.tensors[name].kind, small)
        if isinstance(file, GgufFile | SplitFile) and kind in BLOCKS:
            values = TRANSFORMS[pair.transform].load(config, file.blocks(name))
        else:
            values = TRANSFORMS[pair.transform].load(config, file.load(name))
        for ours, tensor in zip(pair.ours, values, strict=True):
            module, _, leaf = ours.rpartition(".")
            if kind is not None:
                frozen_base.store(model, module, kind, tensor, dtype, path)
                continue
            parameter = nn.Parameter(tensor.to(dtype).contiguous())
            setattr(model.get_submodule(module), leaf, parameter)
        if base is not None:
            del values, tensor
            trim_memory()  # what the dense values took
    if config.tied:
        model.tie()
    if base is not None and base_of(model) is None:
        allowed = ", ".join(OWN)
        raise ConfigError(f"base: no linear of {path} is stored in blocks, allowed {allowed}")
    return model


@dataclass(frozen=True)
class Survey:
    """What a model is made of, read off its headers."""

    path: Path
    config: ModelConfig
    kinds: list[str]  # the stored type of every tensor that the model takes
    parameters: int
    bytes: int
    files: list[Path]  # that hold weights
    ignored: list[str]  # weights in another format beside them
    tokenizer: str
    chat: str


def survey(name: str | os.PathLike[str]) -> Survey:
    """Look at a model without loading a weight."""
    found = headers(name)
    place = str(found.weights.path)
    names = check_tensors(found.config, found.weights, found.layout, found.prefix, place)
    tensors = [found.weights.tensors[name] for name in names]
    tokenizer = none_or(found.tokenizer)
    if not isinstance(tokenizer, str):
        check_fit(tokenizer, found)
    return Survey(
        path=found.path,
        config=found.config,
        kinds=[entry.kind for entry in tensors],
        parameters=sum(math.prod(entry.shape) for entry in tensors),
        bytes=sum(file.stat().st_size for file in found.files),
        files=found.files,
        ignored=found.ignored,
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
