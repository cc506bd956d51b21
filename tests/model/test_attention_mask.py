"""Masks and positions, by hand."""

from __future__ import annotations

import pytest
import torch

from minift.model.attention_mask import count, look, right_padded

CPU = torch.device("cpu")


def bits(*rows):
    return torch.tensor([[char == "1" for char in row] for row in rows])


def seen(rows, T, before=0, P=0, causal=True, window=None, segments=None):
    columns = None if rows is None else bits(*rows)
    packed = None if segments is None else torch.tensor(segments)
    return look(columns, packed, T, before, P, causal, window, CPU)


@pytest.mark.parametrize(("found", "wanted"), [
    (lambda: seen(None, 3), ["100", "110", "111"]),
    (lambda: seen(None, 1), ["1"]),
    (lambda: seen(None, 3, causal=False), ["111", "111", "111"]),
    (lambda: seen(None, 4, window=2), ["1000", "1100", "0110", "0011"]),
    # Padded on the left: nobody sees it but itself.
    (lambda: seen(["0011"], 4), ["1000", "0100", "0010", "0011"]),
    # And a window counts real ones only.
    (lambda: seen(["1011"], 4, window=2), ["1000", "1100", "1010", "0011"]),
    (lambda: seen(None, 4, segments=[[7, 7, 2, 2]]), ["1000", "1100", "0010", "0011"]),
    (lambda: seen(None, 4, causal=False, segments=[[7, 7, 2, 2]]),
     ["1100", "1100", "0011", "0011"]),
    # Two queries after three columns of a cache, the first of them padding.
    (lambda: seen(["01111"], 2, before=3), ["01110", "01111"]),
    # Two virtual keys before everything, which a window counts.
    (lambda: seen(None, 2, P=2), ["1110", "1111"]),
    (lambda: seen(None, 3, P=2, window=3), ["11100", "01110", "00111"]),
    (lambda: seen(None, 4, P=1, window=2, segments=[[0, 0, 1, 1]]),
     ["11000", "01100", "10010", "00011"]),
])  # fmt: skip
def test_where_queries_look(found, wanted):
    mask = found()
    assert mask.shape == (1, 1, len(wanted), len(wanted[0]))
    assert torch.equal(mask[0, 0], bits(*wanted))


def test_every_row_of_a_batch_has_its_own():
    mask = seen(["0111", "1110"], 4)
    assert mask.shape == (2, 1, 4, 4)
    assert torch.equal(mask[0, 0], bits("1000", "0100", "0110", "0111"))
    assert torch.equal(mask[1, 0], bits("1000", "1100", "1110", "1111"))


def test_positions_count_what_is_real():
    assert count(None, None, 2, 3, CPU).tolist() == [[0, 1, 2]]
    assert count(bits("0011", "1100"), None, 2, 4, CPU).tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]
    packed = torch.tensor([[5, 5, 5, 1, 1, 9]])
    assert count(None, packed, 1, 6, CPU).tolist() == [[0, 1, 2, 0, 1, 0]]
    assert count(bits("110110"), packed, 1, 6, CPU).tolist() == [[0, 1, 1, 0, 1, 0]]


def test_padding_on_the_right():
    assert right_padded(bits("111", "100", "000"))
    assert not right_padded(bits("110", "011"))
    assert right_padded(bits("1", "0"))
