"""A model made ready for many small products, for the time of one decoding.

A token's time is the reading of all weights, and the calls around it. So a projection group is one
product on weights in the processor's own order (kernels/linear/packed.py: bf16 on a CPU), or comes
to its products without detours (straight.py: float32); the output matrix likewise. LoRA changes
stay beside the base, as two thin products for the whole group (kernels/lora/thin.py).

Each group is made at its first product, from what is attached and asked at that moment, and nothing
of it outlives the `with`: the next decoding sees every weight, adapter and switch as it is then.

What cannot be grouped takes the ordinary path, group by group: hooks on a linear, changes that are
no thin sum (DoRA, IA3, biases), rows with adapters of their own.

Of a base in few bits, int8 is multiplied as it is, a group at once (kernels/quantized/stacked.py),
4-bit blocks after their nibbles were put in order (four_bits.py); everything else is decoded for
every token, and `obstacle` says why.

Memory: with packing, one more copy of the linears and the output matrix in bf16 (SmolLM2-135M:
269 MB); of int8 the groups of two or more (70 MB) and the output matrix (57 MB). They are made only
where `tokens` are enough to pay for their time.
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
from minift.model.transformer import MLP, Projections, Transformer

Outputs = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Ready:
    """A prepared model: `logits` (..., V) of hidden states (..., D), and its groups."""

    logits: Callable[[Tensor], Tensor]
    groups: list[Group]

    @property
    def whole(self) -> bool:
        """Whether every group was made, so that no product needs oneDNN's switch."""
        return bool(self.groups) and all(group.outputs is not None for group in self.groups)


@contextmanager
def prepared(model: Transformer, tokens: int) -> Iterator[Ready]:
    """Inside, the model's groups are ready.

    `tokens`: how many steps are to come, at most. For use under `torch.no_grad`, and by one thread:
    the model's groups are changed for the time of the block.
    """
    if not choice.fused() or torch.is_grad_enabled():
        yield Ready(model.logits, [])
        return
    groups = [module for module in model.modules() if isinstance(module, Projections)]
    blocks = [module for module in model.modules() if isinstance(module, MLP)]
    before = [module.together for module in (*groups, *blocks)]
    ready = Ready(head_of(model, tokens), [Group(group, tokens) for group in groups])
    for group, made in zip(groups, ready.groups, strict=True):
        group.together = made
    for block in blocks:
        block.together = None  # its two groups are asked instead
    try:
        yield ready
    finally:
        for module, together in zip((*groups, *blocks), before, strict=True):
            module.together = together


def head_of(model: Transformer, tokens: int) -> Callable[[Tensor], Tensor]:
    matrix = few_rows([model.head], tokens) if isinstance(model.head, nn.Linear) else None
    if matrix is None:
        return model.logits
    return lambda hidden: model.capped(matrix(hidden)[0])


def obstacle(model: Transformer) -> str | None:
    """Why each token decodes a base in few bits; None where none does, or the base is dense."""
    for _, linear in quantized(model):
        found = (stacked if linear.kind in OWN else four_bits).obstacle(linear)
        if found is not None:
            return found
    return None


class Group:
    """Stands where `Projections.together` is asked."""

    def __init__(self, group: Projections, tokens: int):
        self.tokens, self.otherwise = tokens, group.together
        self.known = False
        self.outputs: Outputs | None = None

    def __call__(
        self, group: Projections, names: tuple[str, ...], x: Tensor
    ) -> tuple[Tensor, ...] | None:
        if not self.known:  # within a forward pass: what is asked of each row is settled
            self.known, self.outputs = True, outputs_of(group, self.tokens)
        if self.outputs is not None and names == group.members:
            return self.outputs(x)
        return None if self.otherwise is None else self.otherwise(group, names, x)


def outputs_of(group: Projections, tokens: int) -> Outputs | None:
    """All members of a group at once; None where that is not possible, or gains nothing."""
    members = []
    for name in group.members:
        linear = group.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        one: Adapted | None = Adapted(linear)
        if name in group.changes:
            change = group.changes[name]
            asked = None if watched(change) else getattr(change, "adapted", None)
            one = asked(linear) if callable(asked) else None
        if one is None or one.drop or watched(linear):
            return None
        members.append(one)
    linears = [member.linear for member in members]
    changed = any(member.A is not None for member in members)
    base: Outputs | None = few_rows(linears, tokens)
    if base is None:
        base = in_few_bits(linears, tokens)
        if base is None:
            if not changed:
                return None
            base = each(linears)
    if not changed:
        return base
    return summed(base, Thin(members))


def in_few_bits(linears: Sequence[nn.Linear], tokens: int) -> Outputs | None:
    """Layers stored in few bits by products of their own; None where none of them has one."""
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
