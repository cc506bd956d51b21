"""Merges by hand, and in no more than n log n."""

from __future__ import annotations

import time

from minift.tokenizers.merging import merge


def test_the_pair_learned_first_goes_first_and_the_leftmost_of_equals() -> None:
    """l o w e r -> lo w e r -> lo w er -> low er, with l 0, o 1, w 2, e 3, r 4."""
    ranks, merged = {(0, 1): 0, (3, 4): 1, (5, 2): 2}, [5, 6, 7]
    assert merge([0, 1, 2, 3, 4], ranks, merged) == [7, 6]
    assert merge([0, 0, 1, 2, 2], ranks, merged) == [0, 7, 2]
    assert merge([1, 1, 1], {(1, 1): 0}, [8]) == [8, 1]
    assert merge([], ranks, merged) == []
    assert merge([3], ranks, merged) == [3]


def test_a_long_word_takes_no_time() -> None:
    begin = time.process_time()
    assert len(merge([1] * 200_000, {(1, 1): 0, (8, 8): 1}, [8, 9])) == 50_000
    assert time.process_time() - begin < 5
