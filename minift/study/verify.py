"""Is this checkpoint what it should be: every number finite, and layer by layer equal to another?

The same token ids (a formula, so that no tokenizer takes part) go through the model; what enters
the first block, leaves each block, and comes out of the head is the *trace*. Two traces of one
model part at the layer that was converted wrongly: the first difference is named, not the last.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from minift.checkpoints.open import load_model
from minift.errors import ConfigError, FormatError, one_line
from minift.formats import safetensors
from minift.formats.overwrite import check_file
from minift.model.transformer import Transformer

POSITIONS = 24
TRACE_OF = "trace_of"  # in the metadata of a trace: the model that it is of
TOLERANCE = 1e-3  # of the largest value of a layer


@dataclass
class Verdict:
    """What was found. `first` is the first layer that differs, with its relative difference."""

    positions: int
    not_finite: list[str] = field(default_factory=list)  # tensors, then layers
    compared: int = 0
    largest: float = 0.0  # relative difference of any layer
    first: tuple[str, float] | None = None

    @property
    def good(self) -> bool:
        return not self.not_finite and self.first is None


def probe(model: Transformer) -> Tensor:
    """Token ids (1, T), neighbours unlike each other."""
    i = torch.arange(min(POSITIONS, model.config.context))
    return ((i * i * 7 + i * 29 + 3) % model.config.vocab)[None]


@torch.no_grad()
def trace(model: Transformer) -> dict[str, Tensor]:
    """Every layer's output on the probe, in order: (T, D) each, and logits (T, V) or scores."""
    states: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        states[name] = value.detach()[0].float().cpu()

    hooks = [
        model.blocks[0].register_forward_pre_hook(lambda m, inputs: keep("embedding", inputs[0]))
    ]
    for i, block in enumerate(model.blocks):
        hooks.append(
            block.register_forward_hook(lambda m, inputs, out, n=f"block {i}": keep(n, out))
        )
    was = model.training
    model.eval()
    try:
        tokens = probe(model).to(model.embed.weight.device)
        hidden = model(tokens, hidden_only=True)
        for hook in hooks:
            hook.remove()
        keep("last hidden states", hidden)
        if model.head is not None:
            keep("head", model(tokens))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was)
    return states


def verify(model: Transformer, against: Mapping[str, Tensor] | None = None) -> Verdict:
    """Check every tensor and one forward pass; with `against`, a trace, every layer of it too."""
    verdict = Verdict(len(probe(model)[0]))
    verdict.not_finite = [
        name for name, tensor in model.named_parameters() if not bool(tensor.isfinite().all())
    ]
    states = trace(model)
    verdict.not_finite += [name for name, x in states.items() if not bool(x.isfinite().all())]
    if against is None:
        return verdict
    for name, mine in states.items():
        if name not in against or against[name].shape != mine.shape:
            there = tuple(against[name].shape) if name in against else "nothing"
            raise ConfigError(f"verify: {name} is {tuple(mine.shape)} here, {there} there")
        difference = relative(mine, against[name])
        verdict.compared += 1
        verdict.largest = max(verdict.largest, difference)
        if verdict.first is None and not difference <= TOLERANCE:  # NaN differs
            verdict.first = (name, difference)
    for name in against:
        if name not in states:
            raise ConfigError(
                f"verify: {one_line(name)} is there, and this model has no such layer"
            )
    return verdict


def relative(one: Tensor, other: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    size = float(other.abs().max())
    difference = float((one - other).abs().max())
    return difference if size == 0 else difference / size


def save_trace(
    model: Transformer, path: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Keep a model's trace as a safetensors file, to compare other checkpoints with."""
    check_file(path, overwrite)
    safetensors.write(path, trace(model), {TRACE_OF: model.source} | safetensors.MARK)


def other_trace(name: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The trace in a file of `save_trace`, or that of a second checkpoint."""
    # os.path.isfile: pathlib's raises for a name that is too long.
    if os.path.isfile(name) and Path(name).suffix == ".safetensors":
        return trace_in(name)
    return trace(load_model(name))


def trace_in(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The layers in a file of `save_trace`."""
    file = safetensors.read(path)
    if TRACE_OF not in file.metadata:
        place = one_line(os.fspath(path), 200)
        raise ConfigError(f"{place}: holds no trace; give one written with --out, or a model")
    for layer, entry in file.tensors.items():
        if entry.dtype != torch.float32 or len(entry.shape) not in (1, 2) or 0 in entry.shape:
            found = f"{entry.kind} {list(entry.shape)}"
            raise FormatError(path, f'layer "{layer}"', found, "float32 (T, D) or (C,)", "bad-type")
    return {layer: file.load(layer) for layer in file.tensors}
