"""Tokens as bytes, and tokens in texts, by hand."""

from __future__ import annotations

import pytest

from minift.errors import EncodeError
from minift.tokenizers.tokens import Finder, TokenBytes


def test_bytes_of_ids() -> None:
    table = TokenBytes([b"<s>", b"\xc3", b"\xa9", b" a"], hidden=[0])
    assert table.joined([0, 1, 2, 3], skip_special=True) == "é a".encode()
    assert table.joined([0, 3], skip_special=False) == b"<s> a"
    assert (table[0], table[1]) == (b"<s>", b"\xc3")
    assert table.joined([], skip_special=True) == b""


@pytest.mark.parametrize("i", [-1, 2, 10**9])
def test_ids_that_are_none(i: int) -> None:
    table = TokenBytes([b"a", b"b"], hidden=[])
    with pytest.raises(EncodeError, match=f"found token id {i}, allowed 0 to 1"):
        table.joined([0, i], skip_special=True)
    with pytest.raises(EncodeError):
        table[i]


def test_the_leftmost_and_of_those_the_longest() -> None:
    assert Finder({"ab": 1, "abc": 2, "b.": 3}).cut("xabcab.b.") == [
        "x",
        "abc",
        "",
        "ab",
        ".",
        "b.",
        "",
    ]
    assert Finder({}).cut("any") == ["any"]
    assert Finder({"(": 1}).cut("f(x)") == ["f", "(", "x)"]
