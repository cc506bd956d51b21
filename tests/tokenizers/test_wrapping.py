"""What stands around texts, worked by hand."""

from __future__ import annotations

from minift.tokenizers.wrapping import Wrapping, after, around, twice_around

A, B = [10, 11], [20]


def test_bert() -> None:
    wrap = around(cls=1, sep=2)
    assert wrap(A) == ([1, 10, 11, 2], [0, 0, 0, 0])
    assert wrap(A, B) == ([1, 10, 11, 2, 20, 2], [0, 0, 0, 0, 1, 1])
    assert wrap([]) == ([1, 2], [0, 0])
    assert wrap([], []) == ([1, 2, 2], [0, 0, 1])


def test_roberta() -> None:
    wrap = twice_around(cls=0, sep=2)
    assert wrap(A) == ([0, 10, 11, 2], [0, 0, 0, 0])
    assert wrap(A, B) == ([0, 10, 11, 2, 2, 20, 2], [0] * 7)


def test_decoders() -> None:
    assert after(None) == Wrapping()
    assert Wrapping()(A) == (A, [0, 0])
    assert Wrapping()(A, B) == ([10, 11, 20], [0, 0, 1])
    assert after(3)(A) == ([3, 10, 11], [0, 0, 0])
    assert after(3)(A, B) == ([3, 10, 11, 3, 20], [0, 0, 0, 1, 1])
    assert after(0)(A)[0] == [0, 10, 11]  # an id like any other


def test_what_is_given_stays_as_it_was() -> None:
    ids, _ = Wrapping()(A)
    ids.append(5)
    assert A == [10, 11]
