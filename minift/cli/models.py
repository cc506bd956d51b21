"""Load the model that the options name, with its adapter, its labels and its text format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from minift.checkpoints.frozen_base import BASES, counts
from minift.checkpoints.labels import with_labels
from minift.checkpoints.open import headers, load, resolve
from minift.checkpoints.tokenizers import tokenizer_in
from minift.cli.options import Parsed
from minift.cli.run_file import base_in, dtype_in, unfinished_note
from minift.errors import ConfigError, FormatError, notice, one_line
from minift.interop.adapter_files import AnyStored, load_adapter, stored, texts_of
from minift.kernels.quantized.linear import base_of
from minift.model.transformer import Transformer
from minift.runtime import device_of, machine, rates
from minift.tokenizers import text_format
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.text_format import TextFormat


def base_dtype(choice: str, threads: int | None = None, device: str = "cpu") -> str:
    """`auto`: bf16 on a GPU, and on a processor that has units for it; else float32."""
    if choice != "auto":
        return choice
    if device != "cpu":
        return "bf16"
    return "bf16" if machine(threads).bf16 else "float32"


def base_kind(choice: str | None, adapter: AnyStored | None = None) -> str | None:
    """How to store the frozen linears: as --base says, else as in the adapter's run."""
    if choice is None and adapter is not None:
        choice = base_in(adapter.folder)
    if choice is None or choice == "dense":
        return None
    if choice not in BASES:
        raise ConfigError(f"--base: found {choice}, allowed dense, {', '.join(BASES)}")
    return choice


def base_line(model: Transformer) -> str:
    """The line about a quantized base: nf4 · 14 linears · 0.52 bytes a weight."""
    found, size = counts(model)
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))
    return f"base         {base_of(model)} · linears: {kinds} · {size:.3f} bytes a weight"


def open_model(parsed: Parsed, *, trainable: bool = False) -> tuple[Transformer, Tokenizer]:
    """--model, or the base that --adapter was trained on, with the adapter attached."""
    path = parsed.values.get("adapter")
    adapter = stored(path) if path is not None else None
    name = base_name(parsed, adapter)
    model, tokenizer = load(name, **load_options(parsed, adapter))
    labels = labels_of(parsed)
    brings_head = adapter is not None and bool(adapter.labels) and not names_labels(adapter)
    if labels and not brings_head:
        model = with_labels(model, labels)
    if adapter is not None:
        load_adapter(model, adapter.folder, trainable=trainable)
        tokenizer = with_new_tokens(tokenizer, adapter, model.config.vocab)
    if labels and brings_head:
        model.config = replace(model.config, labels=labels)
    apply_text_format(parsed, adapter, model, tokenizer)
    return model, tokenizer


def base_name(parsed: Parsed, adapter: AnyStored | None) -> str:
    """--model, or the model that the adapter was trained on."""
    name: str | None = parsed.values["model"]
    if adapter is None:
        return str(parsed.need("model"))
    if name is None and not adapter.base:
        raise ConfigError(
            f"{adapter.folder} does not say which model it was trained on: add --model"
        )
    if name is None or name == adapter.base:
        check_here(adapter)
        return adapter.base
    if adapter.base:
        notice(adapter.folder, f"was trained on {adapter.base}; --model names {name} instead")
    return name


def load_options(parsed: Parsed, adapter: AnyStored | None) -> dict[str, Any]:
    """Dtype, device and base for `load`: as the options say, else as in the adapter's run."""
    device = device_of(parsed.values["device"])
    dtype = base_dtype(parsed.values["dtype"], parsed.values.get("threads"), device)
    if adapter is not None:
        dtype = trained_dtype(adapter.folder, dtype, chosen="dtype" in parsed.given)
    return {"dtype": dtype, "device": device, "base": base_kind(parsed.values["base"], adapter)}


def trained_dtype(adapter: Path, dtype: str, *, chosen: bool) -> str:
    """The dtype that an adapter was trained in, which is used unless --dtype is given."""
    trained = dtype_in(adapter)
    if trained is None or trained == dtype:
        return dtype
    if chosen:
        notice(adapter, f"was trained in {trained}; --dtype {dtype} is used")
        return dtype
    notice(adapter, f"computes in {trained}, as in its training")
    return trained


def apply_text_format(
    parsed: Parsed, adapter: AnyStored | None, model: Transformer, tokenizer: Tokenizer
) -> None:
    """Give the tokenizer the chat template and the end tokens of training, the adapter's or else
    the model's; --chat-template overrides the template."""
    place, texts = model.source, model.text_format
    if adapter is not None:
        place, texts = str(adapter.folder), texts_of(adapter.folder)
        warn_if_unfinished(adapter)
        if texts is not None:
            text_format.apply(tokenizer, texts)
    name = parsed.values.get("chat_template")  # not every command has it
    if text_format.choose(tokenizer, name) and texts is not None and texts.chat_template:
        notice(place, f"was trained with another chat template; --chat-template {name} is used")


def warn_if_unfinished(adapter: AnyStored) -> None:
    if (badly := unfinished_note(adapter.folder)) is not None:
        notice(adapter.folder.parent, badly)


def training_text_format(parsed: Parsed) -> TextFormat:
    """The text format in which --adapter, or else --model, was trained."""
    path, model = parsed.values.get("adapter"), parsed.values["model"]
    found = None
    if path is not None:
        found = texts_of(stored(path).folder)
    elif model is not None:
        found = headers(model).text_format()
    return found or TextFormat()


def check_here(adapter: AnyStored) -> None:
    """Say that it is the adapter which names a base that is not on this machine."""
    try:
        resolve(adapter.base)
    except ConfigError as error:
        raise ConfigError(
            f"{one_line(str(adapter.folder), 200)} was trained on a model that is not here "
            f"(--model names another place for it): {error}"
        ) from None


def names_labels(adapter: AnyStored) -> bool:
    """True if the adapter names its labels itself; most adapters do not."""
    return bool(adapter.labels) and bool(getattr(adapter, "names_labels", True))


def with_new_tokens(tokenizer: Tokenizer, adapter: AnyStored, rows: int) -> Tokenizer:
    """The adapter's own tokenizer, if it has more tokens than the base's and the model has a row
    of its embedding for each."""
    files = ("tokenizer.json", "tokenizer.model", "vocab.txt")
    if not any((adapter.folder / file).exists() for file in files):
        return tokenizer
    own = tokenizer_in(adapter.folder)
    if own.vocab_size <= tokenizer.vocab_size:
        return tokenizer
    if own.vocab_size > rows:
        notice(adapter.folder, f"its tokenizer has {own.vocab_size:,} tokens, and the embedding "
               f"{rows:,} rows: the tokenizer of the base is used")  # fmt: skip
        return tokenizer
    notice(adapter.folder, f"its tokenizer is used: it has {own.vocab_size:,} tokens, and that of "
           f"the base {tokenizer.vocab_size:,}")  # fmt: skip
    own.chat_template = tokenizer.chat_template or own.chat_template
    return own


def labels_of(parsed: Parsed) -> tuple[str, ...]:
    """The labels of --adapter, or else of --model; empty if it is not a classifier."""
    path, model = parsed.values.get("adapter"), parsed.values["model"]
    found = own_labels(stored(path), parsed) if path is not None else ()
    if path is None and model is not None:
        found = headers(model).config.labels
    given = parsed.values.get("labels")
    if found and given and given != found:
        place, own = path or model, ", ".join(found)
        raise ConfigError(f"labels: found {', '.join(given)}, and {place} has {own}")
    return found


def own_labels(adapter: AnyStored, parsed: Parsed) -> tuple[str, ...]:
    if not adapter.classifies:
        return ()
    given, names = parsed.values.get("labels"), adapter.labels
    if names and not names_labels(adapter):
        if given and len(given) != len(names):
            raise ConfigError(
                f"labels: found {len(given)} names, and {adapter.folder} has {len(names)} labels"
            )
        names = given or base_labels(adapter, parsed, names)
    names = names or given or ()
    if not names:
        raise ConfigError(f"{adapter.folder} is a classifier that does not name its labels: add "
                          "--labels, in the order of its training")  # fmt: skip
    return tuple(names)


def base_labels(adapter: AnyStored, parsed: Parsed, names: tuple[str, ...]) -> tuple[str, ...]:
    """The base's names, if it is a classifier of as many labels; else LABEL_0 and so on."""
    try:
        own = headers(parsed.values["model"] or adapter.base).config.labels
    except (ConfigError, FormatError):
        return names  # the base is loaded later, and says then what is wrong
    return own if len(own) == len(names) else names


def open_language_model(parsed: Parsed) -> tuple[Transformer, Tokenizer]:
    """`open_model` for commands that write text; a classifier is refused before it is loaded."""
    labels = labels_of(parsed)
    if labels:
        name = parsed.values.get("adapter") or parsed.values["model"]
        raise ConfigError(f"{name} is a classifier of {', '.join(labels)}, which writes no text: "
                          "minift eval scores it")  # fmt: skip
    return open_model(parsed)


def headline(threads: int | None = None) -> str:
    """The first line of a long command: versions, threads and the measured speed."""
    import torch

    from minift import __version__

    here, speed = machine(threads), rates(threads)
    parts = [f"minift {__version__}", f"torch {torch.__version__.partition('+')[0]}"]
    parts.append(f"{here.threads} threads")
    route = " by oneDNN" if here.route else ""
    tested = " · self-tested" if here.route or here.bf16 else ""
    parts.append(f"float32{route} {speed.float32:.0f} GFLOP/s, bf16 {speed.bf16:.0f}{tested}")
    return " · ".join(parts)
