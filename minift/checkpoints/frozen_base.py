"""A frozen base in few bits: which tensors of a file become which layers, as they are read.

    int8, nf4   every linear of a projection group is encoded from the file's values
    gguf        a linear keeps the blocks that the file has for it, bit for bit

Blocks run along a row, so they are kept where ours are whole rows of theirs: the same tensor, its
rows in another order (q and k), or some of its rows. A linear that the file stores in another way
(F16, or turned) stays dense; `counts` says how many are what.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn

from minift.checkpoints.mapping import WHOLE_ROWS, Pair
from minift.errors import ConfigError, FormatError
from minift.kernels.quantized.linear import OWN, QuantizedLinear, encode
from minift.kernels.quantized.reference import BLOCKS
from minift.model.transformer import Projections, Transformer

BASES = (*OWN, "gguf")


def checked(base: str | None) -> str | None:
    if base is not None and base not in BASES:
        raise ConfigError(f"base: found {base}, allowed {', '.join(BASES)}")
    return base


def weights(model: Transformer) -> set[str]:
    """The weights that may be stored in few bits: those of all projections."""
    return {
        f"{path}.{member}.weight"
        for path, group in model.named_modules()
        if isinstance(group, Projections)
        for member in group.members
    }


def kind_of(base: str | None, pair: Pair, kind: str, small: set[str]) -> str | None:
    """How the layers of one tensor, stored as `kind`, are to be stored; None: dense."""
    if base is None or not set(pair.ours) <= small:
        return None
    if base in OWN:
        return base
    return kind if kind in BLOCKS and pair.transform in WHOLE_ROWS else None


def store(
    model: Transformer, module: str, kind: str, tensor: Tensor, dtype: torch.dtype, path: str
) -> None:
    """Replace the linear `module` by one that holds `tensor`, values or the blocks themselves."""
    plain = model.get_submodule(module)
    assert isinstance(plain, nn.Linear)
    try:
        stored = encode(kind, tensor) if kind in OWN else {"blocks": tensor.contiguous()}
    except ValueError:
        found = "a weight that is not finite"
        raise FormatError(path, module, found, "finite weights", "out-of-range") from None
    shape = (plain.out_features, plain.in_features)
    model.set_submodule(module, QuantizedLinear(kind, stored, shape, plain.bias, dtype))


def counts(model: Transformer) -> tuple[Counter[str], float]:
    """How many linears are stored how, "dense" too; and bytes a weight of those in few bits."""
    found: Counter[str] = Counter()
    size = numbers = 0
    for name in sorted(weights(model)):
        linear = model.get_submodule(name.removesuffix(".weight"))
        if isinstance(linear, QuantizedLinear):
            found[linear.kind] += 1
            size += linear.bytes
            numbers += linear.in_features * linear.out_features
        else:
            found["dense"] += 1
    return found, size / max(1, numbers)
