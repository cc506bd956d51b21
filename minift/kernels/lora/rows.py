"""Rows of a batch, each with a low-rank change of its own or none, as batched products.

    y_b = x_b Wᵀ + s_k (x_b A_kᵀ) B_kᵀ        k = which[b], the adapter of row b

Every A_k of a projection group stands in one stack, padded with zeros to the largest rank, with one
more of zeros for rows without a change: so all rows and all members of the group share one thin
product in and have one each out, however many adapters there are (Chen et al. 2023,
arXiv:2310.18547, section 4, where a kernel gathers what is indexed here). The thin products are
in the precision of A and B.

The readable twin goes through the adapters one by one (reference.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minift.kernels.lora.reference import Adapted


def adapted_rows(
    x: Tensor, members: Sequence[Sequence[Adapted]], which: Sequence[int]
) -> tuple[Tensor, ...]:
    """x (B, T, in) -> every (B, T, out). See the readable twin."""
    ys = [changes[0].linear(x) for changes in members]
    ranks = [max(rank_of(one) for one in changes) for changes in members]
    if not sum(ranks):
        return tuple(ys)
    thin = [t for changes in members for one in changes for t in (one.A, one.B) if t is not None]
    dtype = torch.promote_types(thin[0].dtype, thin[-1].dtype)
    # The last of each stack stays zero: of rows without a change, whose number is -1.
    A = x.new_zeros(len(members[0]) + 1, sum(ranks), x.shape[-1], dtype=dtype)
    first = 0
    for changes, rank in zip(members, ranks, strict=True):
        for k, one in enumerate(changes):
            if one.A is not None:
                A[k, first : first + len(one.A)] = one.A * one.scale
        first += rank
    at = torch.tensor([k % len(A) for k in which], device=x.device)
    # TRAP: not A[at], whose gradient threads add up in no fixed order.
    t = torch.bmm(x.to(dtype), A.index_select(0, at).mT)  # (B, T, all ranks)
    for j, (changes, part) in enumerate(zip(members, t.split(ranks, dim=-1), strict=True)):
        B = x.new_zeros(len(A), ys[j].shape[-1], ranks[j], dtype=dtype)
        for k, one in enumerate(changes):
            if one.B is not None:
                B[k, :, : one.B.shape[1]] = one.B
        if ranks[j]:
            ys[j] = ys[j] + torch.bmm(part, B.index_select(0, at).mT).to(x.dtype)
    return tuple(ys)


def rank_of(one: Adapted) -> int:
    return 0 if one.A is None else len(one.A)
