"""One query a row against the readable twin, however the cache lies in memory."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.attention import dispatch, single_query
from minift.kernels.attention.reference import attention


def made(B, H, K, S, E, room=5, dtype=torch.float64):
    """q, and k, v as a cache gives them: the filled part of reserved room, keys by channel."""
    generator = torch.Generator().manual_seed(S)
    q = torch.randn(B, 1, H, E, generator=generator, dtype=dtype).transpose(1, 2)
    k = torch.randn(B + 1, K, E, S + room, generator=generator, dtype=dtype).mT
    v = torch.randn(B + 1, K, S + room, E, generator=generator, dtype=dtype)
    return q, k[:B, :, :S], v[:B, :, :S]


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [None, "one", "each"])
@pytest.mark.parametrize(
    ("B", "H", "K", "S"), [(1, 9, 3, 1), (1, 4, 4, 7), (3, 6, 2, 33), (2, 3, 1, 300)]
)
def test_every_number(B, H, K, S, masked, scale):
    q, k, v = made(B, H, K, S, 8)
    mask = None
    if masked is not None:
        generator = torch.Generator().manual_seed(7)
        shape = (B if masked == "each" else 1, 1, 1, S)
        mask = torch.rand(shape, generator=generator) < 0.6
        mask[..., -1] = True
    expected = attention(q, k, v, mask, False, scale)
    before = q.clone()
    torch.testing.assert_close(
        single_query.attention(q, k, v, mask, scale), expected, atol=1e-13, rtol=1e-12
    )
    assert torch.equal(q, before)


def test_who_takes_it(monkeypatch):
    calls, honest = [], single_query.attention
    monkeypatch.setattr(single_query, "attention", lambda *a: calls.append(1) or honest(*a))
    q, k, v = made(1, 4, 2, 6, 8)
    with torch.no_grad():
        dispatch.attend(q, k, v, None, False)
        assert len(calls) == 1
        dispatch.attend(q, k, v, None, False, None, 30.0)  # a cap
        dispatch.attend(q.expand(1, 4, 6, 8), k, v, None, False)  # six queries
        dispatch.attend(*(x.bfloat16() for x in (q, k, v)), None, False)  # scores in float32
    dispatch.attend(q, k, v, None, False)  # gradients
    assert len(calls) == 1
