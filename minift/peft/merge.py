"""Adapters into weights, where the mathematics allows it, and LoRA adapters into one.

Merging makes a new model; the adapted one stays as it was, and so nothing is ever undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from minift.errors import ConfigError
from minift.kernels.quantized.linear import ENCODED, QuantizedLinear, base_of, quantized
from minift.model.finite import check_finite
from minift.model.on_meta import on_meta
from minift.model.transformer import Transformer
from minift.peft import lora
from minift.peft.adapters import DEFAULT, active, config_of, known, use
from minift.peft.methods import attach
from minift.peft.module_copy import Copy
from minift.peft.slots import adapters_of, changes

# Where a family has no bias and a merged change brings one: the field that adds them, by group.
BIASES = {"attn.qkv": "qkv_bias", "attn.out": "out_bias", "mlp.hidden": "mlp_bias",
          "mlp.out": "mlp_bias"}  # fmt: skip


def merge(model: Transformer, *, requantize: bool = False) -> Transformer:
    """A plain new model with the active adapter folded into its weights: W + s B A for LoRA (Hu et
    al. 2021, arXiv:2106.09685, section 4.1), and what each method's file says for the others.

    Each sum is computed in float32 (or the adapter's precision) and rounded once to the base's
    dtype. Tensors without a change are shared with `model`, which stays as it was. `merge_error`
    says what rounding cost.

    Raises ConfigError where nothing is attached, where the method is no change of weights (prefix,
    prompt, P-tuning, bottlenecks), and where a weight, of the base, of the adapter or after
    rounding, is not finite.

    On a quantised base the linears that change become dense; with `requantize` they are encoded
    again, each as it was stored. That costs more than rounding: a small change is lost where it is
    smaller than a step of the format, so look at `merge_error`.
    """
    name = active(model)
    if name is None:
        raise ConfigError("merge: nothing is attached to the model")
    adapters = known(model, name, "merge")
    config = type(adapters.configs[name]).__name__
    if name in adapters.parts and not hasattr(adapters.parts[name], "merged"):
        reason = getattr(adapters.parts[name], "NOT_MERGEABLE", "it is no change of a weight")
        raise ConfigError(f"merge: {config} cannot become weights: {reason}")
    new: dict[str, Tensor] = {}
    for path, module, change in changes(model):
        if not hasattr(change, "merged"):
            reason = getattr(change, "NOT_MERGEABLE", "it is no change of a weight")
            raise ConfigError(f"merge: {config} at {path} cannot become weights: {reason}")
        with torch.no_grad():
            tensors = change.merged(module)  # type: ignore[operator]
        for leaf, tensor in tensors.items():
            new[leaf[2:] if leaf.startswith("..") else f"{path}.{leaf}"] = tensor
    if requantize:
        check_kinds(model, new)
    merged = with_tensors(model, new, requantize)
    check_finite("merge", merged.named_parameters())
    merged.text_format = adapters.texts.get(name, model.text_format)
    return merged


def check_kinds(model: Transformer, new: Mapping[str, Tensor]) -> None:
    """Everything that changes can be encoded again."""
    kinds = {linear.kind for path, linear in quantized(model) if f"{path}.weight" in new}
    if base_of(model) is None:
        raise ConfigError("requantize: found a dense base, allowed one of int8, nf4 or gguf")
    if lost := sorted(kinds - set(ENCODED)):
        found, allowed = ", ".join(lost), ", ".join(ENCODED)
        raise ConfigError(f"requantize: found {found}, which minift reads only; allowed {allowed}")


def with_tensors(
    model: Transformer, new: Mapping[str, Tensor], requantize: bool = False
) -> Transformer:
    """The base with other tensors in some places; a bias that it lacks is added to its group."""
    config, source = model.config, dict(model.named_parameters())
    stored = {f"{path}.weight": linear for path, linear in quantized(model)}
    shared = {"head.weight", "head.decoder.weight"} if config.tied else set()
    for key in (key for key in new if key not in (source | stored) and key not in shared):
        group = ".".join(key.split(".")[2:4])
        if group not in BIASES or not key.endswith(".bias"):
            raise ConfigError(f"merge: {config.family} has no {key}")
        config = replace(config, **{BIASES[group]: True})  # type: ignore[arg-type]
    if config.tied and {"embed.weight", *shared} & set(new) and not alike(new, shared):
        config = replace(config, tied=False)
    plain = on_meta(config, model.source)
    for name, parameter in list(plain.named_parameters()):
        path, _, leaf = name.rpartition(".")
        twin = source.get("embed.weight" if name in shared else name)
        if name in new:
            value = new[name]
        elif twin is not None:
            value = twin.detach()
        elif name in stored:
            continue  # its layer comes below
        else:  # a bias of a group in which another member got one
            like = model.embed.weight
            value = torch.zeros(parameter.shape, dtype=like.dtype, device=like.device)
        setattr(plain.get_submodule(path), leaf, nn.Parameter(value, requires_grad=False))
    for name, linear in stored.items():
        path = name.removesuffix(".weight")
        bias = plain.get_submodule(path).bias
        assert bias is None or isinstance(bias, nn.Parameter)
        if name not in new:
            plain.set_submodule(path, linear.twin(bias))
        elif requantize:
            try:
                layer = QuantizedLinear.of(linear.kind, new[name], bias)
            except (ValueError, OverflowError) as error:
                raise ConfigError(f"merge: {path} does not fit {linear.kind}: {error}") from None
            plain.set_submodule(path, layer)
    if config.tied:
        plain.tie()
    return plain.train(model.training)


def alike(new: Mapping[str, Tensor], shared: set[str]) -> bool:
    """Whether the table and the head that is tied to it became the same matrix."""
    head = next((new[key] for key in shared if key in new), None)
    return head is not None and "embed.weight" in new and torch.equal(head, new["embed.weight"])


@dataclass(frozen=True)
class MergeError:
    """How far the merged model is from the adapted one, on some text."""

    logit: float  # largest difference of a logit, a score, or a hidden state
    kl: float | None  # mean KL(adapted ‖ merged) in nats; None between hidden states
    tokens: int


@torch.no_grad()
def merge_error(adapted: Transformer, merged: Transformer, tokens: Tensor) -> MergeError:
    """Both models on the same tokens (B, T). NaN where one of them gives no finite numbers."""
    were = [(model, model.training) for model in (adapted, merged)]
    try:
        one, other = (model.eval()(tokens).float() for model in (adapted, merged))  # (B, T, V)
    finally:
        for model, training in were:
            model.train(training)
    return MergeError(*apart(one, other, adapted.config.head), tokens.numel())


def apart(one: Tensor, other: Tensor, head: str) -> tuple[float, float | None]:
    """The largest difference, and mean KL(one ‖ other) over the last axis where a head gave them.

    Both are NaN where a number is, so that no limit lets them through.
    """
    largest = float((one - other).abs().max())
    if head == "none":
        return largest, None
    logp, logq = one.log_softmax(-1), other.log_softmax(-1)
    return largest, float((logp.exp() * (logp - logq)).sum(-1).mean().clamp(min=0))


def combine(
    model: Transformer, weights: Mapping[str, float], *, name: str = DEFAULT
) -> Transformer:
    """A new LoRA adapter `name`: the weighted sum of others, exact, at the sum of their ranks.

    `weights` has a number for each adapter by its name. The change is Σ w s B A, so the new A are
    the old ones (R, in) below each other, and the new B (out, R) beside each other. It becomes the
    active adapter, and is trainable; those that it was made of stay.

    Raises ConfigError for an adapter that is not attached, that is no plain LoRA (DoRA, PiSSA,
    trained biases or token rows), or a `name` that is taken.
    """
    parts: dict[str, dict[str, lora.LoRALayer | lora.LoRAEmbedding]] = {}
    for other in weights:
        known(model, other, "combine")
        config = config_of(model, other)
        other_than_thin = isinstance(config, lora.LoRA) and bool(
            config.dora or config.tokens or config.lora_init == "pissa" or config.lora_bias
        )
        other_than_thin |= any(isinstance(change, Copy) for _, _, change in changes(model, other))
        if not isinstance(config, lora.LoRA) or other_than_thin:
            kind = type(config).__name__
            raise ConfigError(f'combine: found "{other}", a {config or kind}, allowed plain LoRA')
        parts[other] = lora.changes_of(model, other)
    if not parts:
        raise ConfigError("combine: found no adapters, allowed one or more")
    paths = list(dict.fromkeys(path for found in parts.values() for path in found))
    pieces: dict[str, tuple[Tensor, Tensor]] = {}
    for path in paths:
        found = {other: part[path] for other, part in parts.items() if path in part}
        A = torch.cat([change.A for change in found.values()])
        B = torch.cat([weights[o] * c.scale * c.B for o, c in found.items()], dim=1)
        pieces[path] = A.detach(), B.detach()
    ranks = tuple((path, A.shape[0]) for path, (A, _) in pieces.items())
    alphas = tuple((path, float(A.shape[0])) for path, (A, _) in pieces.items())
    summed = lora.LoRA(rank=ranks[0][1], alpha=ranks[0][1], targets=tuple(paths), ranks=ranks,
                       alphas=alphas)  # fmt: skip
    adapters = adapters_of(model)
    assert adapters is not None
    attach(model, summed, name=name)
    with torch.no_grad():
        for path, change in lora.changes_of(model, name).items():
            change.A.copy_(pieces[path][0])
            change.B.copy_(pieces[path][1])
    return use(model, name)
