"""Rows as tensors: padded, packed, and in parts, by hand."""

from __future__ import annotations

import pytest
import torch

from minift.train.objectives.batch import (
    Batch,
    Window,
    packed_batch,
    padded_batch,
    token_batches,
    windows,
)


def test_collate_shifts_by_one_and_pads_on_the_right():
    batch = padded_batch([([5, 6, 7, 8], [0, 0, 1, 1]), ([3, 4], [0, 1])])
    assert batch.tokens.tolist() == [[5, 6, 7], [3, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, 8], [4, 0, 0]]
    assert batch.loss_mask.tolist() == [[False, True, True], [True, False, False]]
    assert batch.num_tokens == 4
    assert batch.num_targets == 3


@pytest.mark.parametrize("most", [1, 9, 10, 24, 1000])
def test_pieces_hold_every_row_once_within_the_limit(most):
    lengths = [3, 9, 2, 5, 5, 10, 2, 8]  # a row of n + 1 ids makes n positions
    rows = [([k] * (n + 1), [1] * (n + 1)) for k, n in enumerate(lengths)]
    cut = token_batches(rows, most)
    for batch in cut:
        assert batch.tokens.numel() <= most or len(batch.tokens) == 1
    seen = sorted((int(r[0]), int(m.sum())) for b in cut for r, m in zip(b.tokens, b.loss_mask,
                                                                        strict=True))  # fmt: skip
    assert seen == list(enumerate(lengths))
    assert sum(batch.num_tokens for batch in cut) == sum(lengths)


def test_packed_rows_stand_behind_each_other_each_shifted_by_one():
    batch = packed_batch([([1, 2, 3], [0, 0, 1]), ([7, 8], [0, 1])], 3)
    assert batch.tokens.tolist() == [[1, 2, 7]]
    assert batch.targets.tolist() == [[2, 3, 8]]
    assert batch.loss_mask.tolist() == [[False, True, True]]
    assert batch.segments.tolist() == [[0, 0, 1]]
    assert (batch.num_tokens, batch.num_targets) == (3, 2)


def test_packed_rows_are_filled_up_with_texts_that_nothing_learns_from():
    rows = [(list(range(1, 13)), [1] * 12), (list(range(1, 7)), [1] * 6)]  # 11 and 5 of 32
    batch = packed_batch(rows, 1000)
    assert batch.tokens.tolist() == [[*range(1, 12), *range(1, 6), *[0] * 16]]
    assert batch.loss_mask.tolist() == [[*[True] * 16, *[False] * 16]]
    assert batch.segments.tolist() == [[*[0] * 11, *[1] * 5, *[2] * 11, *[3] * 5]]
    assert (batch.num_tokens, batch.num_targets) == (16, 16)
    for most, wide in ((16, 16), (20, 20), (31, 31), (32, 32), (7, 16)):
        assert packed_batch(rows, most).tokens.shape == (1, wide)
    assert packed_batch([*rows, rows[0], rows[1]], 1000).tokens.shape == (1, 32)
    assert packed_batch([([1], [0]), ([2], [0])], 1000).tokens.shape == (1, 0)


@pytest.mark.parametrize(("lengths", "rows"), [
    ([9, 10], 2),  # 19 of 20: padded
    ([8, 10], 2),  # 18 of 20 is just enough
    ([7, 10], 1),  # 17 is not: packed
    ([10], 1),
])  # fmt: skip
def test_auto_packs_where_padding_would_be_more_than_a_tenth(lengths, rows):
    ids = [(list(range(n + 1)), [1] * (n + 1)) for n in lengths]
    [batch] = token_batches(ids, 1000, "auto")
    assert len(batch.tokens) == rows
    assert (batch.segments is not None) == (lengths == [7, 10])
    assert all(b.segments is None for b in token_batches(ids, 1000, "off"))


def test_batch_counts():
    batch = Batch(torch.zeros(1, 3), torch.zeros(1, 3), 3, torch.tensor([[True, False, True]]))
    assert batch.num_targets == 2
    labels = Batch(torch.zeros(2, 3), torch.tensor([1, 0]), 6)
    assert labels.num_targets == 2


def test_a_window_keeps_its_rows_and_encodes_others_each_time():
    encoded = []
    window = Window(lambda i: encoded.append(i) or 10 * i)
    window.load([3, 4])
    assert [window[i] for i in (3, 4, 3, 7, 7)] == [30, 40, 30, 70, 70]
    assert encoded == [3, 4, 7, 7]
    window.load([7])
    assert window.rows == {7: 70}


def test_windows_cover_every_row_once():
    assert [i for some in windows(1300) for i in some] == list(range(1300))
    assert [len(some) for some in windows(1300)] == [512, 512, 276]
    assert list(windows(0)) == []
