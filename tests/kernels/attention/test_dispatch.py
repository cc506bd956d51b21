"""Both ways give the same, on either side of the border."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from minift.kernels.attention import dispatch, fused
from minift.kernels.choice import using

one = fused.attention


@pytest.mark.parametrize(("side", "called"), [(256, 0), (257, 1)])
def test_the_border_of_masked_rows(side, called, monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention

    def counted(*parts, **options):
        calls.append(1)
        return fused(*parts, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    q, k, v = heads(side)
    mask = torch.ones(1, 1, side, side, dtype=torch.bool).tril()
    y = dispatch.attend(q, k, v, mask, False)
    assert len(calls) == called
    exact = fused(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(y, exact, atol=1e-12, rtol=1e-10)


def heads(T):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, T, 8, generator=generator).double() for n in (4, 2, 2)]


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(("T", "in_blocks"), [(1, 0), (64, 0), (65, 1), (300, 1)])
def test_causal_rows_are_ours_at_any_length(kernels, T, in_blocks, monkeypatch):
    q, k, v = heads(T)
    exact = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    monkeypatch.delattr(F, "scaled_dot_product_attention")
    blocks = []
    monkeypatch.setattr(fused, "attention", lambda *a: blocks.append(1) or one(*a))
    with using(kernels):
        y = dispatch.attend(q, k, v, None, True)
    assert len(blocks) == (in_blocks if kernels == "auto" else 0)
    torch.testing.assert_close(y, exact, atol=1e-12, rtol=1e-10)


def test_one_query_against_a_long_cache_stays_whole(monkeypatch):
    monkeypatch.delattr(F, "scaled_dot_product_attention")
    q, k = torch.ones(2, 4, 1, 8), torch.ones(2, 2, 5000, 8)
    assert dispatch.attend(q, k, k, None, False).shape == (2, 4, 1, 8)
