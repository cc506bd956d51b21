"""Texts in parts: by hand, and nothing lost whatever the lengths."""

from __future__ import annotations

import pytest

from minift.train.chunks import Chunks, count_of, part_of


def test_parts_by_hand() -> None:
    ids = [9, 1, 2, 3, 4, 5, 6, 7, 8]  # 9 = BOS, 8 = the end token
    assert count_of(9, 4) == 3
    assert [part_of(ids, k, 4, True) for k in range(3)] == [
        ([9, 1, 2, 3], [0, 1, 1, 1]),
        ([9, 4, 5, 6], [0, 1, 1, 1]),
        ([9, 7, 8], [0, 1, 1]),
    ]
    # Without BOS: the token before the first target.
    assert [part_of(ids[1:], k, 4, False) for k in range(3)] == [
        ([1, 2, 3, 4], [1, 1, 1, 1]),
        ([4, 5, 6, 7], [0, 1, 1, 1]),
        ([7, 8], [0, 1]),
    ]


@pytest.mark.parametrize("opens", [True, False])
def test_the_targets_of_the_parts_are_those_of_the_whole(opens: bool) -> None:
    for length in range(1, 40):
        ids = list(range(100, 100 + length))
        for most in range(2, 44):
            parts = [part_of(ids, k, most, opens) for k in range(count_of(length, most))]
            targets = [
                i for part, bits in parts for i, bit in zip(part[1:], bits[1:], strict=True) if bit
            ]
            assert targets == ids[1:]
            assert all(len(part) <= most for part, _ in parts)
            assert all(len(part) > 1 for part, _ in parts) or length == 1
            assert not opens or all(part[0] == ids[0] for part, _ in parts)


def test_places_of_rows() -> None:
    chunks = Chunks(4, {1: 3, 3: 2})
    assert len(chunks) == 7
    assert [chunks.place(i) for i in range(7)] == [
        (0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (3, 0), (3, 1),
    ]  # fmt: skip
    plain = Chunks(3, {})
    assert (len(plain), plain.place(2)) == (3, (2, 0))
