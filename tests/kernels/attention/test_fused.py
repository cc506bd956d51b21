"""Blocks of queries against the readable twin: values and all gradients, at any length."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.attention import fused
from minift.kernels.attention.reference import attention


def heads(B, H, K, T, E, dtype=torch.float64):
    generator = torch.Generator().manual_seed(T + E)
    shapes = ((B, T, H, E), (B, T, K, E), (B, T, K, E))  # as projections give them: strided
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return [x.transpose(1, 2).requires_grad_() for x in made]


def results(run, parts):
    y = run(*parts)
    g = torch.sin(torch.arange(y.numel(), dtype=torch.float64)).view(y.shape)
    return [y, *torch.autograd.grad(y, parts, g.to(y.dtype))]


def readable(scale):
    return lambda q, k, v: attention(q, k, v, None, True, scale)


@pytest.mark.parametrize(("H", "K"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("scale", [None, 0.4])
@pytest.mark.parametrize(
    ("B", "T", "E"), [(1, 1, 8), (3, 7, 6), (2, 128, 5), (1, 129, 4), (1, 300, 4)]
)
def test_values_and_all_gradients(B, T, E, H, K, scale):
    parts = heads(B, H, K, T, E)
    ours = results(lambda q, k, v: fused.attention(q, k, v, scale), parts)
    for a, b in zip(ours, results(readable(scale), parts), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("scores", [1, 500, 3_000, 10_000])
@pytest.mark.parametrize("many", [30, 31])
def test_parts_of_a_batch_and_the_size_of_blocks_change_nothing(monkeypatch, scores, many):
    monkeypatch.setattr(fused, "ROWS", 5)
    monkeypatch.setattr(fused, "MANY", many)
    monkeypatch.setattr(fused, "SCORES", scores)
    parts = heads(5, 6, 2, 23, 4)
    ours = results(fused.attention, parts)
    for a, b in zip(ours, results(readable(None), parts), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("batch", [1, 2, 3, 24])
@pytest.mark.parametrize("scores", [1, 700, 2**20])
def test_parts_hold_every_row_once_and_stay_in_the_space(monkeypatch, batch, scores):
    monkeypatch.setattr(fused, "SCORES", scores)
    q, k, v = heads(batch, 2, 1, 9, 4)
    for block in fused.blocks(q, k, v, 1.0):
        parts = [range(*part.indices(batch)) for part in block.parts()]
        assert [row for part in parts for row in part] == list(range(batch))
        most = max(1, scores // (len(block.later) * block.end))
        assert max(len(part) for part in parts) <= most


@pytest.mark.parametrize(("B", "T", "rows"), [
    (8, 1, 1), (8, 33, 33), (8, 80, 80), (8, 130, 65), (8, 256, 64), (8, 2048, 128),
    (1, 33, 33), (1, 130, 130), (1, 256, 128), (1, 400, 134), (1, 2048, 128),
])  # fmt: skip
def test_blocks_are_about_equal_and_larger_where_there_is_little_beside_them(B, T, rows):
    blocks = list(fused.blocks(*heads(B, 9, 3, T, 2, torch.float32), 1.0))
    assert blocks[0].end == rows
    assert [block.begin for block in blocks] == list(range(0, T, rows))
    assert blocks[-1].end == T
    assert T - blocks[-1].begin > rows - len(blocks)


def test_gradients_keep_the_layout_that_projections_want():
    q, k, v = heads(2, 6, 2, 33, 8)
    y = fused.attention(q, k, v)
    assert y.transpose(1, 2).is_contiguous()
    (dq,) = torch.autograd.grad(y.sum(), [q])
    assert dq.transpose(1, 2).is_contiguous()


def test_bf16_is_about_as_close_to_the_truth_as_its_twin():
    """Two blocks of dv are rounded and then added, which the twin does not do."""
    half = heads(2, 6, 2, 150, 16, torch.bfloat16)
    exact = results(readable(None), [x.detach().double().requires_grad_() for x in half])
    ours, twins = (results(run, half) for run in (fused.attention, readable(None)))
    for a, b, e in zip(ours, twins, exact, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - e).norm() < 1.3 * (b.double() - e).norm()


def test_gradcheck(monkeypatch):
    monkeypatch.setattr(fused, "ROWS", 3)
    assert torch.autograd.gradcheck(fused.attention, heads(1, 4, 2, 7, 3))
