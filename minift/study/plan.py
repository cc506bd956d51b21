"""How long training will take on this machine's CPU, before the first step."""

from __future__ import annotations

import torch

from minift.model.transformer import Transformer
from minift.peft.slots import linears
from minift.runtime import rates

# What a step takes beside its matrix products, measured on a machine of MEASURED_AT GFLOP/s in
# float32 (benchmarks/LOG.md, "Short rows").
SECONDS_PER_LINEAR = 0.7e-3  # forward and backward
SECONDS_PER_NUMBER = 1.5e-9  # that a linear reads or writes
MEASURED_AT = 457


def training_seconds(
    model: Transformer, steps: int, tokens: float, threads: int | None = None
) -> float | None:
    """Seconds for `steps` steps of `tokens` tokens each; None on a GPU, whose rate is not measured.

    The frozen linears take 4 operations a weight and token, forward and backward (Kaplan et al.
    2020, arXiv:2001.08361, section 2.1, less the weight gradients that a frozen base does not
    need). What lies between them takes a time for each linear and one for each number it reads or
    writes; both shrink as the machine's float32 rate grows.
    """
    weight = model.embed.weight
    if weight.device.type != "cpu":
        return None
    here = rates(threads)
    rate = here.bf16 if weight.dtype == torch.bfloat16 else here.float32
    sizes = [(one.in_features, one.out_features) for _, one in linears(model)]
    products = 4e-9 * sum(i * o for i, o in sizes) * tokens / rate
    between = SECONDS_PER_LINEAR * len(sizes)
    between += SECONDS_PER_NUMBER * tokens * sum(i + o for i, o in sizes)
    return steps * (products + between * MEASURED_AT / here.float32)
