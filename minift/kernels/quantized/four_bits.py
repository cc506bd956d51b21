"""Products of few rows by 4-bit blocks of GGUF files, their nibbles in torch's own order.

    w = (q - 8) s + z        Q4_0: s = d, z = 0        Q4_1: s = d, z = m + 8 d

`_weight_int4pack_mm_for_cpu` multiplies bf16 by such weights in groups of 32, with s and z in bf16.
The blocks have them in float16, three bits more, so unlike the 8-bit product (direct.py) this one
is on weights that differ: by up to 2⁻⁸ s |q - 8| + 2⁻⁸ |z|, where the readable twin (decode, then
F.linear) rounds every weight to bf16 by itself. Over 24 texts SmolLM2's
logits are off the float32 model's by 0.20 (root of the mean square) in Q4_1 and 0.23 in Q4_0,
decoded by 0.16 and 0.21; the mean KL is 0.002 nats for all four.

The nibbles stand in another order than in the file: one more copy of the weights, 5 bits each, for
as long as this object lives. Making it takes about as long as decoding the weights once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minift.kernels import choice
from minift.kernels.quantized.linear import QuantizedLinear

ROWS = 64
KINDS = {"Q4_0": 18, "Q4_1": 20}  # bytes of a block of 32
AVAILABLE = hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")


def obstacle(linear: QuantizedLinear) -> str | None:
    """Why its products decode it; None where they need not."""
    if linear.kind not in KINDS:
        return f"{linear.kind} has no product of its own"
    if linear.like.dtype != torch.bfloat16:
        return f"the work is in {str(linear.like.dtype).removeprefix('torch.')}, not in bf16"
    if linear.like.device.type != "cpu":
        return f"the model is on {linear.like.device.type}"
    if linear.out_features % 16:
        return f"{linear.out_features} outputs are no multiple of 16"
    return None if AVAILABLE else f"torch {torch.__version__} has no such product"


class FourBits:
    """A linear's product for few rows: x (..., in) -> (..., out); for more rows, the linear's."""

    def __init__(self, linear: QuantizedLinear):
        self.linear = linear
        size = KINDS[linear.kind]
        shape = (linear.out_features, linear.in_features // 32, size)
        blocks = linear.get_buffer("blocks").view(shape)  # (out, in / 32, bytes)
        d, nibbles = half(blocks, 0), blocks[..., size - 16 :]
        q = torch.cat((nibbles & 15, nibbles >> 4), dim=-1)  # (out, in / 32, 32)
        z = torch.zeros_like(d) if linear.kind == "Q4_0" else half(blocks, 2) + 8 * d
        pack = torch.ops.aten._convert_weight_to_int4pack_for_cpu
        self.codes = pack(q.view(linear.out_features, -1).int(), 1)
        self.scales = torch.stack((d, z), dim=-1).transpose(0, 1).contiguous().bfloat16()

    def __call__(self, x: Tensor) -> Tensor:
        if x.numel() > ROWS * x.shape[-1] or not choice.fused():
            y: Tensor = self.linear(x)
            return y
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
        y = multiply(flat, self.codes, 32, self.scales)  # (N, out)
        if self.linear.bias is not None:
            y += self.linear.bias
        return y.view(*x.shape[:-1], -1)


def half(blocks: Tensor, at: int) -> Tensor:
    """The float16 number at byte `at` of every block, in float32."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16)[..., 0].float()
