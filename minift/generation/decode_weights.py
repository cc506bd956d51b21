"""Weights prepared for decoding: many products with few rows, for the time of one `with`.

A token's time is the time to read all weights, and the calls around it. So a projection group is
one product on weights in the processor's own order (kernels/linear/packed.py: bf16 on a CPU), or
calls its products directly (straight.py: float32); the output matrix likewise. LoRA stays beside
the base, as two low-rank products for the whole group (kernels/lora/thin.py).

A group is prepared at its first product, from the adapter that is active at that moment. Nothing of
it outlives the `with`: the next decoding sees every weight and adapter as it is then.

A group that cannot be prepared takes the ordinary path: one with hooks on a Linear, with changes
other than a low-rank sum (DoRA, IA3, biases), or with one adapter per row.

Of a quantized base, int8 is multiplied as it is, a group at once (kernels/quantized/stacked.py),
4-bit blocks after reordering (four_bits.py); all other kinds are dequantized for every token, and
`obstacle` says why.

Memory: prepacked, one more copy of the linears and the output matrix in bf16 (SmolLM2-135M:
269 MB); of int8, the groups of two or more (70 MB) and the output matrix (57 MB). Copies are made
only if `tokens` are enough to pay for the time it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minift.kernels import choice
from minift.kernels.linear.dispatch import few_rows
from minift.kernels.linear.packed import CALLS, Packed
from minift.kernels.lora.reference import Adapted, watched
from minift.kernels.lora.thin import Thin
from minift.kernels.quantized import four_bits, stacked
from minift.kernels.quantized.four_bits import FourBits
from minift.kernels.quantized.linear import OWN, QuantizedLinear, quantized
from minift.kernels.quantized.stacked import Stacked
from minift.model.extension import LinearChange
from minift.model.transformer import MLP, Projections, Transformer

Outputs = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class DecodeWeights:
    """`logits` (..., V) of hidden states (..., D), and the model's prepared groups."""

    logits: Callable[[Tensor], Tensor]
    groups: list[GroupWeights]

    @property
    def complete(self) -> bool:
        """True if every group is prepared, so that no product needs oneDNN's switch."""
        return bool(self.groups) and all(group.outputs is not None for group in self.groups)


@contextmanager
def decode_weights(model: Transformer, tokens: int) -> Iterator[DecodeWeights]:
    """Inside the `with`, the model's projection groups use prepared weights.

    `tokens`: the number of steps to come, at most. For use under `torch.no_grad`, and by one thread
    only, since the model itself is changed for the time of the block.
    """
    if not choice.fused() or torch.is_grad_enabled():
        yield DecodeWeights(model.logits, [])
        return
    groups = [module for module in model.modules() if isinstance(module, Projections)]
    blocks = [module for module in model.modules() if isinstance(module, MLP)]
    before = [module.together for module in (*groups, *blocks)]
    weights = DecodeWeights(
        logits_of(model, tokens), [GroupWeights(group, tokens) for group in groups]
    )
    for group, prepared in zip(groups, weights.groups, strict=True):
        group.together = prepared
    for block in blocks:
        block.together = None  # so that its two groups are called
    try:
        yield weights
    finally:
        for module, together in zip((*groups, *blocks), before, strict=True):
            module.together = together


def logits_of(model: Transformer, tokens: int) -> Callable[[Tensor], Tensor]:
    matrix = few_rows([model.head], tokens) if isinstance(model.head, nn.Linear) else None
    if matrix is None:
        return model.logits
    return lambda hidden: model.softcap(matrix(hidden)[0])


def obstacle(model: Transformer) -> str | None:
    """Why every token dequantizes the base; None if it does not, or if the base is dense."""
    for _, linear in quantized(model):
        found = (stacked if linear.kind in OWN else four_bits).obstacle(linear)
        if found is not None:
            return found
    return None


class GroupWeights:
    """A FusedGroup: it replaces `Projections.together` of one group."""

    def __init__(self, group: Projections, tokens: int):
        self.tokens, self.fallback = tokens, group.together
        self.prepared = False
        self.outputs: Outputs | None = None

    def __call__(
        self, group: Projections, names: tuple[str, ...], x: Tensor
    ) -> tuple[Tensor, ...] | None:
        if not self.prepared:  # only within a forward pass is each row's adapter known
            self.prepared, self.outputs = True, outputs_of(group, self.tokens)
        if self.outputs is not None and names == group.members:
            return self.outputs(x)
        return None if self.fallback is None else self.fallback(group, names, x)


def outputs_of(group: Projections, tokens: int) -> Outputs | None:
    """All members of a group at once; None if that is not possible, or gains nothing."""
    members = []
    for name in group.members:
        linear = group.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        one: Adapted | None = Adapted(linear)
        if name in group.changes:
            change = group.changes[name]
            found = None
            if isinstance(change, LinearChange) and not watched(change):
                found = change.adapted(linear)
            one = found if isinstance(found, Adapted) else None
        if one is None or one.drop or watched(linear):
            return None
        members.append(one)
    linears = [member.linear for member in members]
    changed = any(member.A is not None for member in members)
    base: Outputs | None = few_rows(linears, tokens)
    if base is None:
        base = quantized_outputs(linears, tokens)
        if base is None:
            if not changed:
                return None
            base = each(linears)
    if not changed:
        return base
    return summed(base, Thin(members))


def quantized_outputs(linears: Sequence[nn.Linear], tokens: int) -> Outputs | None:
    """Quantized Linears by products of their own; None if none of them has one."""
    of = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
    if len(of) == len(linears) and tokens >= CALLS and not any(map(stacked.obstacle, of)):
        return Stacked(of)
    products = [own_product(linear) for linear in linears]
    return None if products == linears else each(products)


def own_product(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    if not isinstance(linear, QuantizedLinear):
        return linear
    if four_bits.obstacle(linear) is None:
        return FourBits(linear)
    if stacked.obstacle(linear) is None:
        alone = Stacked([linear])
        return lambda x: alone(x)[0]
    return linear


def each(linears: Sequence[Callable[[Tensor], Tensor]]) -> Outputs:
    return lambda x: tuple(linear(x) for linear in linears)


def summed(base: Outputs, thin: Thin) -> Outputs:
    if isinstance(base, Packed):
        return lambda x: base.parts(base.whole(x).add_(thin.whole(x)))  # rounded once
    return lambda x: tuple(y + d for y, d in zip(base(x), thin(x), strict=True))
