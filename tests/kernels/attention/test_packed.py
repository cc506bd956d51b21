"""How packed sequences are unpacked, by hand; both ways; and what a model makes of them."""

from __future__ import annotations

import pytest
import torch

from minift.errors import ConfigError
from minift.kernels.attention import packed
from minift.kernels.attention.fused import attention
from minift.kernels.attention.packed import LengthBuckets, MoveRows, PackedSequences
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer

#               [ 5 tokens   ]  [2][ 3    ]  of which the row's last is padding
SEGMENTS = torch.tensor([[7, 7, 7, 7, 7, 0], [1, 1, 2, 2, 2, 2]])
KEEP = torch.tensor([[True] * 6, [True] * 5 + [False]])


def test_sequences_are_runs_and_the_longest_is_first():
    starts, lengths = packed.sequence_bounds(SEGMENTS, KEEP)
    assert starts.tolist() == [0, 5, 6, 8]
    assert lengths.tolist() == [5, 1, 2, 3]
    buckets = LengthBuckets(PackedSequences.of(SEGMENTS, KEEP))
    assert [(b.sequences, b.length) for b in buckets.buckets] == [(4, 5)]
    assert buckets.buckets[0].real.sum(1).tolist() == [5, 3, 2, 1]
    assert buckets.source.tolist() == [0, 1, 2, 3, 4, 8, 9, 10, 6, 7, 5]
    assert buckets.padded.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 15]
    assert buckets.rows == 20


def test_equal_ids_apart_are_two_sequences_and_a_gap_parts_one():
    assert packed.sequence_bounds(torch.tensor([[1, 2, 1]]), None)[1].tolist() == [1, 1, 1]
    keep = torch.tensor([[True, False, True, True]])
    assert packed.sequence_bounds(torch.ones(1, 4), keep)[0].tolist() == [0, 2]


def test_a_bucket_ends_where_lengths_are_half_of_its_longest(monkeypatch):
    monkeypatch.setattr(packed, "SHORT", 1)
    lengths = [9, 5, 4, 3, 2, 1, 1]
    segments = torch.arange(7).repeat_interleave(torch.tensor(lengths))[None]
    found = [
        (b.sequences, b.length) for b in LengthBuckets(PackedSequences.of(segments, None)).buckets
    ]
    assert found == [(2, 9), (2, 4), (1, 2), (2, 1)]
    monkeypatch.setattr(packed, "SHORT", 3)  # below it none is parted from another
    found = [
        (b.sequences, b.length) for b in LengthBuckets(PackedSequences.of(segments, None)).buckets
    ]
    assert found == [(2, 9), (5, 4)]


@pytest.mark.parametrize("short", [1, 64])
def test_there_and_back(short, monkeypatch):
    monkeypatch.setattr(packed, "SHORT", short)
    buckets = LengthBuckets(PackedSequences.of(SEGMENTS, KEEP))
    x = torch.arange(1.0, 2 * 6 * 12 + 1).view(2, 6, 3, 4).transpose(1, 2)  # (B, H, T, E)
    parts = buckets.unpack(x)
    assert len(parts) == (3 if short == 1 else 1)
    assert torch.equal(parts[0][0], x[0, :, :5])  # the longest text
    assert not parts[-1][-1, :, 1:].any()  # behind the shortest is nothing
    back = buckets.repack(parts)
    assert torch.equal(back, x * KEEP[:, None, :, None])
    assert back.transpose(1, 2).is_contiguous()


def test_gradcheck_of_a_move():
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    source, to = torch.tensor([4, 0, 2]), torch.tensor([1, 5, 3])
    assert torch.autograd.gradcheck(lambda x: MoveRows.apply(x, source, to, 7), x)


@pytest.mark.parametrize("short", [1, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_attention_of_packed_sequences_is_that_of_each_alone(short, dtype, monkeypatch):
    monkeypatch.setattr(packed, "SHORT", short)
    lengths = [130, 1, 40, 7]
    segments = torch.arange(4).repeat_interleave(torch.tensor(lengths))[None]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, sum(lengths), heads, 8, generator=generator)
        .to(dtype).transpose(1, 2).requires_grad_()
        for heads in (6, 2, 2)
    )  # fmt: skip
    buckets = LengthBuckets(PackedSequences.of(segments, None))
    parts = zip(*map(buckets.unpack, (q, k, v)), strict=True)
    y = buckets.repack([attention(*qkv) for qkv in parts])
    g = torch.sin(torch.arange(y.numel())).view(y.shape).to(dtype)
    grads = torch.autograd.grad(y, (q, k, v), g)
    first = 0
    for length in lengths:
        at = slice(first, first + length)
        parts = [x.detach()[:, :, at].requires_grad_() for x in (q, k, v)]
        alone = attention(*parts)
        expected = [alone, *torch.autograd.grad(alone, parts, g[:, :, at])]
        got = [y[:, :, at], *(grad[:, :, at] for grad in grads)]
        # bf16: one unit in the last place (2^-8) of numbers up to 4
        tolerance = 1e-12 if dtype == torch.float64 else 2**-6
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
        first += length


def test_a_batch_of_padding_alone_is_refused():
    config = ModelConfig(
        family="llama", layers=1, dim=8, heads=2, kv_heads=1, head_dim=4, ff=8, vocab=9, context=16
    )
    tokens = torch.zeros(1, 3, dtype=torch.long)
    with pytest.raises(ConfigError, match="segments and no position that is real"):
        Transformer(config)(tokens, segments=tokens, mask=torch.zeros(1, 3, dtype=torch.bool))
