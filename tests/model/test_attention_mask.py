"""Masks and positions, by hand."""

from __future__ import annotations

import pytest
import torch

from minift.kernels.attention.packed import PackedSequences
from minift.model.attention_mask import (
    count_positions,
    dense_mask,
    is_right_padded,
    pack,
    selected_positions,
)

CPU = torch.device("cpu")


def bits(*rows):
    return torch.tensor([[char == "1" for char in row] for row in rows])


def mask_of(rows, T, cached=0, P=0, causal=True, window=None, segments=None):
    keys = None if rows is None else bits(*rows)
    packed = None if segments is None else torch.tensor(segments)
    return dense_mask(keys, packed, T, cached, P, causal, window, CPU)


@pytest.mark.parametrize(("mask", "expected"), [
    (lambda: mask_of(None, 3), ["100", "110", "111"]),
    (lambda: mask_of(None, 1), ["1"]),
    (lambda: mask_of(None, 3, causal=False), ["111", "111", "111"]),
    (lambda: mask_of(None, 4, window=2), ["1000", "1100", "0110", "0011"]),
    # Padded on the left: only padding attends to itself.
    (lambda: mask_of(["0011"], 4), ["1000", "0100", "0010", "0011"]),
    # And a window counts real ones only.
    (lambda: mask_of(["1011"], 4, window=2), ["1000", "1100", "1010", "0011"]),
    (lambda: mask_of(None, 4, segments=[[7, 7, 2, 2]]), ["1000", "1100", "0010", "0011"]),
    (lambda: mask_of(None, 4, causal=False, segments=[[7, 7, 2, 2]]),
     ["1100", "1100", "0011", "0011"]),
    # Two queries after three columns of a cache, the first of them padding.
    (lambda: mask_of(["01111"], 2, cached=3), ["01110", "01111"]),
    # Two virtual keys before everything, which a window counts.
    (lambda: mask_of(None, 2, P=2), ["1110", "1111"]),
    (lambda: mask_of(None, 3, P=2, window=3), ["11100", "01110", "00111"]),
    (lambda: mask_of(None, 4, P=1, window=2, segments=[[0, 0, 1, 1]]),
     ["11000", "01100", "10010", "00011"]),
])  # fmt: skip
def test_where_queries_attend(mask, expected):
    mask = mask()
    assert mask.shape == (1, 1, len(expected), len(expected[0]))
    assert torch.equal(mask[0, 0], bits(*expected))


def test_every_row_of_a_batch_has_its_own():
    mask = mask_of(["0111", "1110"], 4)
    assert mask.shape == (2, 1, 4, 4)
    assert torch.equal(mask[0, 0], bits("1000", "0100", "0110", "0111"))
    assert torch.equal(mask[1, 0], bits("1000", "1100", "1110", "1111"))


def test_positions_count_what_is_real():
    assert count_positions(None, None, 2, 3, CPU).tolist() == [[0, 1, 2]]
    assert count_positions(bits("0011", "1100"), None, 2, 4, CPU).tolist() == [
        [0, 0, 0, 1],
        [0, 1, 1, 1],
    ]
    packed = torch.tensor([[5, 5, 5, 1, 1, 9]])
    assert count_positions(None, packed, 1, 6, CPU).tolist() == [[0, 1, 2, 0, 1, 0]]
    assert count_positions(bits("110110"), packed, 1, 6, CPU).tolist() == [[0, 1, 1, 0, 1, 0]]


def test_padding_on_the_right():
    assert is_right_padded(bits("111", "100", "000"))
    assert not is_right_padded(bits("110", "011"))
    assert is_right_padded(bits("1", "0"))


def test_selected_positions_are_indices():
    assert selected_positions(bits("0100", "1001"), 2, 4).tolist() == [1, 4, 7]
    indices = torch.tensor([7, 1])
    assert selected_positions(indices, 2, 4) is indices


def test_the_longest_sequence():
    segments = torch.tensor([[5, 5, 5, 1], [1, 1, 1, 1]])
    assert pack(segments, None).max_seqlen == 4
    assert pack(segments, bits("1111", "0110").int()).max_seqlen == 3
    assert pack(segments, bits("0000", "0000")).max_seqlen == 0
    packed = PackedSequences(segments[:1], None, 9)
    assert pack(packed, None) is packed
