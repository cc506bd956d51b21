"""What several commands do first: load the model that the options name, with its adapter."""

from __future__ import annotations

from minift.checkpoints.frozen_base import BASES, counts
from minift.checkpoints.labels import with_labels
from minift.checkpoints.open import headers, load
from minift.cli.options import Parsed
from minift.cli.run_file import base_in
from minift.errors import ConfigError
from minift.kernels.quantized.linear import base_of
from minift.model.transformer import Transformer
from minift.peft.files import AnyStored, load_adapter, stored
from minift.runtime import device_of, machine
from minift.tokenizers.interface import Tokenizer


def base_dtype(choice: str, threads: int | None = None, device: str = "cpu") -> str:
    """`auto`: bf16 on a GPU, and where this machine multiplies it faster than float32."""
    if choice != "auto":
        return choice
    if device != "cpu":
        return "bf16"
    return "bf16" if machine(threads).prefers_bf16 else "float32"


def base_kind(choice: str | None, adapter: AnyStored | None = None) -> str | None:
    """How to store the frozen linears: as asked, else as the run of the adapter did."""
    if choice is None and adapter is not None:
        choice = base_in(adapter.folder)
    if choice is None or choice == "dense":
        return None
    if choice not in BASES:
        raise ConfigError(f"--base: found {choice}, allowed dense, {', '.join(BASES)}")
    return choice


def base_line(model: Transformer) -> str:
    """What a base in few bits is made of: nf4 · 14 linears · 0.52 bytes a weight."""
    found, size = counts(model)
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(found.items()))
    return f"base         {base_of(model)} · linears: {kinds} · {size:.3f} bytes a weight"


def open_model(parsed: Parsed, *, trainable: bool = False) -> tuple[Transformer, Tokenizer]:
    """--model, or the base that --adapter was trained on, with the adapter attached."""
    asked = parsed.values.get("adapter")
    adapter = stored(asked) if asked is not None else None
    name = parsed.values["model"]
    if name is None and adapter is not None:
        name = adapter.base
        if not name:
            raise ConfigError(
                f"{adapter.folder} does not say which model it was trained on: add --model"
            )
    if name is None:
        raise ConfigError("--model is missing")
    device = device_of(parsed.values["device"])
    dtype = base_dtype(parsed.values["dtype"], parsed.values.get("threads"), device)
    base = base_kind(parsed.values["base"], adapter)
    model, tokenizer = load(name, dtype=dtype, device=device, base=base)
    labels = labels_of(parsed)
    tokenizer.chat_template = parsed.values["chat_template"]
    if labels:
        model = with_labels(model, labels)
    if adapter is not None:
        load_adapter(model, adapter.folder, trainable=trainable)
    return model, tokenizer


def labels_of(parsed: Parsed) -> tuple[str, ...]:
    """The labels of the classifier that --adapter or --model is; none where it is no classifier."""
    asked, model = parsed.values.get("adapter"), parsed.values["model"]
    found = own_labels(stored(asked), parsed) if asked is not None else ()
    if asked is None and model is not None:
        found = headers(model).config.labels
    given = parsed.values.get("labels")
    if found and given and given != found:
        place, own = asked or model, ", ".join(found)
        raise ConfigError(f"labels: found {', '.join(given)}, and {place} has {own}")
    return found


def own_labels(adapter: AnyStored, parsed: Parsed) -> tuple[str, ...]:
    if not adapter.classifies:
        return ()
    names = adapter.labels or parsed.values.get("labels")
    if not names:
        raise ConfigError(f"{adapter.folder} is a classifier that does not name its labels: add "
                          "--labels, in the order of its training")  # fmt: skip
    return tuple(names)


def open_speaker(parsed: Parsed) -> tuple[Transformer, Tokenizer]:
    """`open_model` for commands that want text; a classifier is refused before it is loaded."""
    labels = labels_of(parsed)
    if labels:
        name = parsed.values.get("adapter") or parsed.values["model"]
        raise ConfigError(f"{name} is a classifier of {', '.join(labels)}, which writes no text: "
                          "minift eval scores it")  # fmt: skip
    return open_model(parsed)


def headline(screen_text: str = "") -> str:
    """The first line of a long command: versions and what the self-test found."""
    import torch

    from minift import __version__

    found = machine()
    parts = [f"minift {__version__}", f"torch {torch.__version__.partition('+')[0]}"]
    parts.append(f"{found.threads} threads")
    route = " through oneDNN, self-test passed" if found.route else ""
    parts.append(f"{found.rate:.0f} GFLOP/s float32{route}, {found.bf16:.0f} bf16")
    return " · ".join([*parts, screen_text] if screen_text else parts)
