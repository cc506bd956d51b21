"""Cross-entropy from hidden states and a frozen head, for a GPU.

    z = h Eᵀ + b (capped: c tanh(z / c))        loss = Σ_n w_n (lse(z_n) - z_n[target])

The structure of fused.py: between the two products of a block, made by the GPU's own library, the
logits become (softmax(z) - onehot) in place (Hsu et al. 2024, arXiv:2410.10989, section 3.2). Here
that is one kernel, a program a row: a first reading keeps a running maximum and a running sum
(Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3), a second one writes. The logits stay in
the dtype of the products, so of a bf16 model no float32 copy of them is ever made.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from minift.kernels.activations_triton import OPTIONS, tanh, wide
from minift.kernels.cross_entropy import fused

ROWS, LOGITS = 4096, 2**28  # the most of a block: 512 MB in bf16, at full rate of the products
COLUMNS = 4096  # logits at once in a program


@triton.jit
def loss_kernel(
    z, targets, losses, stride, V, CAP: tl.constexpr, LEARNS: tl.constexpr,
    COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A row's loss; its logits become what the loss's gradient by them is, where LEARNS."""
    row = tl.program_id(0).to(tl.int64)
    start, at = z + row * stride, tl.arange(0, COLUMNS)
    target = tl.load(targets + row)
    hit = tl.load(start + target).to(WIDE)  # before the sums below, at which all threads meet
    # Each of COLUMNS lanes runs by itself; they meet once, at the end.
    most = tl.full([COLUMNS], float("-inf"), WIDE)
    total = tl.zeros([COLUMNS], WIDE)
    for first in range(0, V, COLUMNS):
        there = first + at < V
        logit = tl.load(start + first + at, mask=there, other=0.0).to(WIDE)
        if CAP is not None:
            logit = CAP * tanh(logit / CAP)
        logit = tl.where(there, logit, float("-inf"))
        larger = tl.maximum(most, logit)
        # A lane that has seen nothing: exp(-inf - -inf) would be NaN.
        known = tl.where(larger == float("-inf"), 0.0, larger)
        total = total * tl.exp(most - known) + tl.exp(logit - known)
        most = larger
    top = tl.max(most, 0)
    lse = top + tl.log(tl.sum(total * tl.exp(most - top), 0))
    if CAP is not None:
        hit = CAP * tanh(hit / CAP)
    tl.store(losses + row, lse - hit)
    if LEARNS:
        for first in range(0, V, COLUMNS):
            there = first + at < V
            logit = tl.load(start + first + at, mask=there, other=0.0).to(WIDE)
            if CAP is not None:
                bent = tanh(logit / CAP)
                logit = CAP * bent
            d = tl.exp(logit - lse) - tl.where(first + at == target, 1.0, 0.0)
            if CAP is not None:
                d = d * (1 - bent * bent)
            tl.store(start + first + at, d.to(z.dtype.element_ty), mask=there)


def turn(z: Tensor, targets: Tensor, cap: float | None, learns: bool) -> Tensor:
    """Every row's loss (n,); z (n, V) becomes the loss's gradient by z, in place, if `learns`."""
    n, V = z.shape
    precise = torch.promote_types(z.dtype, torch.float32)
    losses = torch.empty(n, dtype=precise, device=z.device)
    if n:
        columns = min(COLUMNS, triton.next_power_of_2(V))
        loss_kernel[(n,)](
            z, targets, losses, z.stride(0), V, cap, learns, columns, wide(z.dtype),
            num_warps=max(1, min(8, columns // 256)), **OPTIONS,
        )  # fmt: skip
    return losses


def blocks(hidden: Tensor, head: nn.Linear) -> Iterator[slice]:
    """The rows of each product."""
    yield from fused.parts(len(hidden), head.out_features, ROWS, LOGITS)


def block(
    h: Tensor, head: nn.Linear, targets: Tensor, cap: float | None, learns: bool
) -> tuple[Tensor, Tensor | None]:
    """Each row's loss (n,), and dh, of some rows; neither is weighted."""
    z = F.linear(h, head.weight, head.bias)  # (n, V)
    losses = turn(z, targets, cap, learns)
    return losses, z @ head.weight if learns else None


def linear_cross_entropy(
    hidden: Tensor,
    head: nn.Linear,
    targets: Tensor,
    cap: float | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum of the negative log-probabilities: hidden (N, D), targets (N,) -> a float32+ scalar."""
    total: Tensor = fused.LinearCrossEntropy.apply(
        hidden, head, targets.contiguous(), cap, weights, blocks, block
    )
    return total
