"""A frozen linear layer whose weight is stored in few bits: `y = x Wᵀ + b`, W decoded when needed.

    int8         8 bits, a scale for every row                 int8.py
    nf4          4 bits, a scale for every 64 weights          nf4.py
    Q4_1, ...    the blocks of a GGUF file, as they are there  reference.py

W is decoded for the forward pass and again for the backward pass (dx = g W), and kept by neither:
between the two nothing of its size is alive. Decoding costs the same for one token and for a
thousand, so it is little of a training step and most of a single token's: without gradients few
rows are multiplied by the stored numbers themselves, where there is a product for them (direct.py).

Decoding gives float32 values, rounded once to the dtype that the model computes in. The blocks of
GGUF files are decoded on the CPU wherever the model is; int8 and nf4 where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from minift.kernels.quantized import direct, int8, nf4
from minift.kernels.quantized.quantize import PACK, quantize
from minift.kernels.quantized.reference import KINDS, dequantize

OWN = ("int8", "nf4")
ENCODED = (*OWN, *PACK)  # what a dense weight can be made into


def encode(kind: str, weight: Tensor) -> dict[str, Tensor]:
    """The stored tensors of a dense weight (out, in).

    Raises ValueError or OverflowError where the weights are beyond the format.
    """
    if kind in OWN:
        return (int8 if kind == "int8" else nf4).encode(weight)
    return {"blocks": quantize(kind, weight)}


def decode(
    kind: str, stored: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The dense weight (out, in)."""
    if kind == "int8":
        return int8.decode(stored, dtype)
    if kind == "nf4":
        return nf4.decode(stored, shape, dtype)
    blocks = stored["blocks"]
    return dequantize(kind, blocks.cpu(), dtype).to(blocks.device)


class Product(torch.autograd.Function):
    """x (..., in), b (out,) -> x Wᵀ + b (..., out)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return F.linear(x, linear.weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        dx = g @ ctx.linear.weight if ctx.needs_input_grad[0] else None
        db = g.reshape(-1, g.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        return dx, db, None


class QuantizedLinear(nn.Linear):
    """Stands where an nn.Linear stands; its weight is no parameter, and cannot be trained.

    The stored tensors are buffers. They hold whole numbers only, a scale the bits of its float32:
    so `.to(dtype)` rounds none of them, and decides what the weight is decoded to (`like`).
    """

    like: Tensor
    codes: Tensor  # of int8: (out, in), and the bits of its scales (out,)
    scale: Tensor

    def __init__(
        self,
        kind: str,
        stored: Mapping[str, Tensor],
        shape: tuple[int, int],
        bias: nn.Parameter | None,
        dtype: torch.dtype,
    ):
        nn.Module.__init__(self)  # and not nn.Linear's, which would make a weight
        self.kind, self.names = kind, tuple(stored)
        self.out_features, self.in_features = shape
        for name, tensor in stored.items():
            scale = tensor.dtype == torch.float32
            self.register_buffer(name, tensor.view(torch.int32) if scale else tensor)
        device = next(iter(stored.values())).device
        self.register_buffer("like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self.register_parameter("bias", bias)

    @classmethod
    def of(cls, kind: str, weight: Tensor, bias: nn.Parameter | None = None) -> QuantizedLinear:
        """A dense weight (out, in), stored; computed with in the weight's dtype."""
        shape = (weight.shape[0], weight.shape[1])
        return cls(kind, encode(kind, weight), shape, bias, weight.dtype)

    def twin(self, bias: nn.Parameter | None) -> QuantizedLinear:
        """A second layer on the same stored tensors."""
        shape = (self.out_features, self.in_features)
        return QuantizedLinear(self.kind, self.stored, shape, bias, self.like.dtype)

    @property
    def stored(self) -> dict[str, Tensor]:
        """The stored tensors by name, scales in float32."""
        found = {name: self.get_buffer(name) for name in self.names}
        return {
            name: tensor.view(torch.float32) if tensor.dtype == torch.int32 else tensor
            for name, tensor in found.items()
        }

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The dense weight (out, in), decoded anew each time."""
        shape = (self.out_features, self.in_features)
        return decode(self.kind, self.stored, shape, self.like.dtype)

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.stored.values())

    def forward(self, x: Tensor) -> Tensor:
        return self.times(x, self.bias)

    def product(self, x: Tensor) -> Tensor:
        """x Wᵀ, the bias left out."""
        return self.times(x, None)

    def times(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if not torch.is_grad_enabled() and direct.fits(self.kind, x):
            scale = self.scale.view(torch.float32).bfloat16()
            return direct.product(x, self.codes, scale, bias)
        y: Tensor = Product.apply(x, bias, self)
        return y

    def extra_repr(self) -> str:
        return f"{self.kind}, {super().extra_repr()}"


# ---- a whole model -------------------------------------------------------------------------------


def quantized(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Every layer whose weight is stored in few bits, with its path."""
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            yield path, module


def base_of(model: nn.Module) -> str | None:
    """How the frozen base is stored: int8, nf4 or gguf; None where it is dense."""
    kinds = {linear.kind for _, linear in quantized(model)}
    return next((kind for kind in OWN if kind in kinds), "gguf" if kinds & set(KINDS) else None)


def numbers(model: nn.Module) -> int:
    """Parameters, and the weights that are stored quantised."""
    stored = sum(linear.in_features * linear.out_features for _, linear in quantized(model))
    return stored + sum(parameter.numel() for parameter in model.parameters())


def dense_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter by name, and the weights that are stored quantised, decoded."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return found | {f"{path}.weight": linear.weight for path, linear in quantized(model)}
