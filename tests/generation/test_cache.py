"""The cache: columns fill from the left, and pieces of a row equal the row at once."""

from __future__ import annotations

import pytest
import torch

from minift.errors import ConfigError
from minift.generation.cache import KVCache
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer

TINY = ModelConfig("llama", 31, 16, 3, 4, 2, 4, 12, 32)


@pytest.fixture(scope="module")
def tiny():
    generator = torch.Generator().manual_seed(2)
    model = Transformer(TINY).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.4)
    return model.eval()


def cache(batch=1, capacity=12):
    return KVCache(TINY, batch, capacity, dtype=torch.float64)


def test_it_reserves_what_the_header_says():
    made = cache(3, 7)
    assert made.k.numel() + made.v.numel() == 3 * 7 * (2 * 3 * 2 * 4)  # 2 · layers · K · E
    assert made.k.dtype == made.v.dtype == torch.float64
    assert made.length == 0


def test_channels_stand_beside_each_other_where_attention_wants_them():
    assert cache(2, 5).k.stride(-2) == 1
    on_gpu = KVCache(TINY, 2, 5, dtype=torch.bfloat16, device="meta")  # as on any other device
    assert on_gpu.k.stride(-1) == on_gpu.v.stride(-1) == 1
    assert on_gpu.k.dtype == torch.bfloat16
    on_gpu.reserve(3)
    assert on_gpu.k.shape == on_gpu.v.shape == (3, 2, 2, 8, 4)
    assert on_gpu.k.is_contiguous()


@pytest.mark.parametrize("transposed", [True, False])
def test_rows_and_columns_grow_in_either_layout(transposed):
    made = cache(1, 2)
    made.transposed = transposed
    made.k = made.empty_keys(tuple(made.v.shape))
    k = torch.arange(16.0, dtype=torch.float64).view(1, 2, 2, 4)
    for layer in range(3):
        made.write(layer, k + layer, -k)
    made.advance(2)
    made.select(torch.tensor([0, 0, 0]))
    made.reserve(1)
    assert made.k.shape == made.v.shape == (3, 3, 2, 3, 4)
    assert made.k.stride(-2 if transposed else -1) == 1
    for layer in range(3):
        assert torch.equal(made.k[layer, :, :, :2], (k + layer).expand(3, 2, 2, 4))
        assert torch.equal(made.v[layer, :, :, :2], -k.expand(3, 2, 2, 4))


def test_writes_follow_each_other():
    made = cache(capacity=5)
    k = torch.arange(24.0, dtype=torch.float64).view(1, 2, 3, 4)
    made.write(1, k, -k)
    assert made.length == 0  # every layer writes the same columns; then they are past
    made.advance(3)
    more = torch.full((1, 2, 1, 4), 9.0, dtype=torch.float64)
    keys, values = made.write(1, more, more + 1)
    assert torch.equal(keys, torch.cat((k, more), dim=2))
    assert torch.equal(values, torch.cat((-k, more + 1), dim=2))


def test_marks_count_real_columns():
    made = cache(2, 6)
    keep, counted = made.mark(torch.tensor([[False, False, True], [True, True, True]]), 3)
    assert keep.tolist() == [[False, False, True], [True, True, True]]
    assert counted.tolist() == [[0], [0]]
    made.advance(3)
    keep, counted = made.mark(None, 2)
    assert keep.tolist() == [[False, False, True, True, True], [True] * 5]
    assert counted.tolist() == [[1], [3]]


def test_without_padding_there_is_no_mask():
    made = cache(2, 6)
    keep, counted = made.mark(None, 4)
    made.advance(4)
    assert keep is None
    keep, counted = made.mark(None, 1)
    assert keep is None
    assert counted.tolist() == [[4], [4]]


def test_more_than_reserved_is_refused(tiny):
    made = cache(capacity=4)
    with torch.no_grad():
        tiny(torch.tensor([[1, 2, 3]]), cache=made)
        with pytest.raises(ConfigError, match=r"5 columns asked of a cache .* reserved for 4"):
            tiny(torch.tensor([[4, 5]]), cache=made)
        tiny(torch.tensor([[4]]), cache=made)
    assert made.length == 4


@pytest.mark.parametrize("chunks", [[9], [4, 5], [1] * 9, [2, 1, 6], [8, 1]])
@pytest.mark.parametrize("padded", [False, True])
def test_chunked_prefill_equals_one_pass(tiny, chunks, padded):
    tokens = torch.arange(27).view(3, 9) % 31
    mask = torch.ones(3, 9, dtype=torch.bool)
    if padded:
        mask[0, :5], mask[2, :2] = False, False
    with torch.no_grad():
        whole = tiny(tokens, mask=mask)
        made, parts, start = cache(3), [], 0
        for n in chunks:
            piece = slice(start, start + n)
            parts.append(tiny(tokens[:, piece], mask=mask[:, piece], cache=made))
            start += n
    torch.testing.assert_close(torch.cat(parts, 1)[mask], whole[mask], rtol=0, atol=1e-12)


def test_selected_rows_go_on_as_if_they_had_been_alone(tiny):
    tokens = torch.tensor([[0, 0, 4, 5], [6, 7, 8, 9], [0, 10, 11, 12]])
    mask = tokens > 0
    after = torch.tensor([[3], [13]])
    with torch.no_grad():
        made, alone = cache(3), cache(2)
        rows = torch.tensor([2, 0])
        tiny(tokens, mask=mask, cache=made)
        made.select(rows)
        tiny(tokens[rows], mask=mask[rows], cache=alone)
        found, expected = tiny(after, cache=made), tiny(after, cache=alone)
        short = tiny(torch.tensor([[4, 5, 13]]))[:, -1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1:, -1], short, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", [[0, 0, 1, 2, 1], [2, 2], [0, 1, 2], [1], [1, 1, 1, 1]])
def test_rows_may_be_taken_more_than_once(tiny, rows):
    tokens = torch.tensor([[0, 0, 4, 5], [6, 7, 8, 9], [0, 10, 11, 12]])
    mask, after = tokens > 0, torch.arange(len(rows))[:, None] + 13
    with torch.no_grad():
        made, alone = cache(3), cache(len(rows))
        tiny(tokens, mask=mask, cache=made)
        made.select(torch.tensor(rows))
        tiny(tokens[rows], mask=mask[rows], cache=alone)
        for _ in range(2):
            found, expected = tiny(after, cache=made), tiny(after, cache=alone)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert made.rows.tolist() == rows
    assert made.k.shape == alone.k.shape


def test_columns_on_a_cpu_are_float32_or_better():
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                        (torch.float64, torch.float64)):  # fmt: skip
        made = KVCache(TINY, 1, 4, dtype=dtype)
        assert made.k.dtype == made.v.dtype == wide
    assert KVCache(TINY, 1, 4, dtype=torch.bfloat16, device="meta").k.dtype == torch.bfloat16


def test_wide_columns_hold_the_very_numbers(tiny):
    half = Transformer(TINY).bfloat16().eval()
    half.load_state_dict(tiny.state_dict())
    made = KVCache(TINY, 1, 4, dtype=torch.bfloat16)
    with torch.no_grad():
        out = half(torch.tensor([[1, 2, 3]]), cache=made)
    assert out.dtype == torch.bfloat16
    assert torch.equal(made.k[..., :3, :].bfloat16().float(), made.k[..., :3, :])
