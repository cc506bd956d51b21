"""The readable attention against torch's own, values and all gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minift.kernels.attention.reference import attention


def heads(B, H, K, T, S, E, dtype=torch.float64):
    generator = torch.Generator().manual_seed(T + S)
    shapes = ((B, T, H, E), (B, S, K, E), (B, S, K, E))  # as projections give them: strided
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [x.transpose(1, 2).requires_grad_() for x in made]


def both(parts, mask, causal):
    """(output, gradients) of the readable one and of torch's."""
    q, k, v = parts
    ours = attention(q, k, v, mask, causal)
    theirs = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True
    )
    g = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=ours.dtype)
    return [(y, *torch.autograd.grad(y, parts, g)) for y in (ours, theirs)]


@pytest.mark.parametrize(("H", "K"), [(4, 4), (6, 2), (9, 3), (3, 1)])
@pytest.mark.parametrize(("B", "T", "E"), [(1, 1, 8), (1, 7, 6), (3, 17, 10), (2, 128, 4)])
def test_causal_values_and_gradients_equal_torchs(B, H, K, T, E):
    ours, theirs = both(heads(B, H, K, T, T, E), None, T > 1)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(("B", "T", "S"), [(1, 1, 9), (3, 5, 11), (2, 16, 16)])
def test_masked_values_and_gradients_equal_torchs(B, T, S):
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(B, 1, T, S, generator=generator) < 0.5
    mask[..., 0] = True
    ours, theirs = both(heads(B, 6, 2, T, S, 8), mask, False)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-10)


def test_bf16_is_as_close_to_the_truth_as_torchs():
    exact = attention(*heads(2, 6, 2, 33, 33, 16), None, True)
    half = heads(2, 6, 2, 33, 33, 16, torch.bfloat16)
    truth = attention(*(x.double() for x in half), None, True)
    ours = attention(*half, None, True)
    torchs = F.scaled_dot_product_attention(*half, is_causal=True, enable_gqa=True)
    assert ours.dtype == torch.bfloat16
    assert (ours - truth).norm() < 1.2 * (torchs - truth).norm()
    assert (truth - exact).norm() > 0  # the inputs really were rounded


def test_by_hand():
    # One head of width 4: scores q k / 2 are 0 and ln 3, so the weights are 1/4 and 3/4.
    q = torch.tensor([[[[2.0, 0, 0, 0]]]], dtype=torch.float64)
    k = torch.tensor([[[[0.0, 1, 0, 0], [torch.tensor(3.0).double().log(), 0, 0, 0]]]]).double()
    v = torch.tensor([[[[4.0, 0, 0, 0], [0.0, 8, 0, 0]]]], dtype=torch.float64)
    y = attention(q, k, v, None, False)
    torch.testing.assert_close(y[0, 0, 0], torch.tensor([1.0, 6, 0, 0]).double())
