"""NF4: the paper's levels, and codes and scales against plain loops in float64."""

from __future__ import annotations

import math

import pytest
import torch

from minift.kernels.quantized import nf4, reference
from minift.kernels.quantized.nf4 import decode, encode, levels

PUBLISHED = (  # arXiv:2305.14314, appendix E
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def test_the_levels_are_those_of_the_paper():
    assert len(levels()) == 16
    assert max(abs(a - b) for a, b in zip(levels(), PUBLISHED, strict=True)) < 1e-6


def by_hand(weight):
    """Codes, 8-bit scales, ranges, mean and the decoded weights, in Python's own numbers."""
    flat = [float(x) for x in weight.flatten()]
    flat += [0.0] * (-len(flat) % 64)
    blocks = [flat[i : i + 64] for i in range(0, len(flat), 64)]
    c = [max(abs(x) for x in block) for block in blocks]
    codes = []
    for block, size in zip(blocks, c, strict=True):
        for x in block:
            share = x / size if size else 0.0
            distances = [abs(share - level) for level in PUBLISHED]
            codes.append(distances.index(min(distances)))
    mean = sum(c) / len(c)
    scales, ranges = [], []
    for i in range(0, len(c), 256):
        r = max(abs(x - mean) for x in c[i : i + 256])
        ranges.append(r)
        scales += [round((x - mean) / (r / 127)) if r else 0 for x in c[i : i + 256]]
    values = []
    for i, code in enumerate(codes):
        block = i // 64
        size = max(0.0, mean + scales[block] * ranges[block // 256] / 127)
        values.append(size * PUBLISHED[code])
    return codes, scales, ranges, mean, values[: weight.numel()]


# One weight; less than a block; odd rows across blocks; a last block of 1; two groups, one short.
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 33), (13, 5), (16, 1100)])
@pytest.mark.parametrize("step", [1, 8192])
def test_plain_loops_give_the_same(shape, step, monkeypatch):
    monkeypatch.setattr(nf4, "STEP", step)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * 0.05
    stored = encode(weight)
    codes, scales, ranges, mean, values = by_hand(weight)
    packed = stored["codes"].flatten().tolist()
    assert [q for byte in packed for q in (byte >> 4, byte & 15)] == codes
    assert stored["scales"].tolist() == scales
    assert torch.allclose(stored["ranges"], torch.tensor(ranges), rtol=1e-6, atol=1e-9)
    assert math.isclose(stored["mean"].item(), mean, rel_tol=1e-6)
    found = decode(stored, shape)
    assert found.shape == shape
    assert found.dtype == torch.float32
    assert torch.allclose(found.flatten(), torch.tensor(values), rtol=1e-5, atol=1e-9)


def test_a_block_by_hand():
    """One block of 64: the mean is its own scale, so the second step costs nothing."""
    weight = torch.zeros(1, 64)
    weight[0, :5] = torch.tensor([-2.0, 2.0, 0.9, -0.3, 0.07])  # shares -1, 1, 0.45, -0.15, 0.035
    stored = encode(weight)
    assert stored["codes"][0, :3].tolist() == [0 << 4 | 15, 12 << 4 | 5, 7 << 4 | 7]
    assert stored["mean"].item() == 2
    assert (stored["ranges"].tolist(), stored["scales"].tolist()) == ([0.0], [0])
    expected = [2 * PUBLISHED[i] for i in (0, 15, 12, 5, 7)]
    assert torch.allclose(decode(stored, (1, 64))[0, :5], torch.tensor(expected))


def test_zeros_stay_zero_and_a_small_block_keeps_its_signs():
    weight = torch.ones(3, 64)
    weight[0], weight[1] = 0.0, 1e-6
    found = decode(encode(weight), (3, 64))
    assert not found[0].any()
    assert (found[1] >= 0).all()
    assert torch.allclose(found[2], torch.ones(64), rtol=0.01)


def test_a_weight_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="not finite"):
        encode(torch.tensor([[1.0, float("inf")]]))


def test_bytes_a_weight_of_large_matrices():
    stored = encode(torch.randn(576, 1536))
    size = sum(t.numel() * t.element_size() for t in stored.values())
    assert size / (576 * 1536) == pytest.approx(0.5 + 1 / 64 + 4 / (64 * 256), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_pieces_and_dtypes_change_nothing(dtype, monkeypatch):
    stored = encode(torch.randn(33, 65))
    whole = decode(stored, (33, 65))
    monkeypatch.setattr(reference, "SERIAL", 3 * 64)
    assert torch.equal(decode(stored, (33, 65)), whole)
    assert torch.equal(decode(stored, (33, 65), dtype), whole.to(dtype))
