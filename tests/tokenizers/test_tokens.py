"""Tokens as bytes, and tokens in texts, by hand."""

from __future__ import annotations

import time

import pytest

from minift.errors import EncodeError
from minift.tokenizers.tokens import Finder, TokenBytes, finders, is_word
from minift.tokenizers.vocabulary import Added


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


def test_flags_by_hand_as_the_library_has_them() -> None:
    """Worked out with the tokenizers library, the last token of the last text twice-covered."""
    flags = {"ab": ("single_word", "lstrip", "rstrip"), "  a": ()}
    find = Finder({"ab": 1, "  a": 2}, flags).cut
    assert find("cab abc") == ["cab abc"]
    assert find("c ab   abc") == ["c", "ab", "", "  a", "bc"]
    assert find("ab   a") == ["", "ab", "", "  a", ""]
    assert find("ab\u0301 ab_ ab\u200d (ab)") == ["ab\u0301 ab_ ab\u200d (", "ab", ")"]
    assert find("x \t\u3000ab\x85y") == ["x", "ab", "y"]
    assert find("x\x1cab\x1cy") == ["x\x1c", "ab", "\x1cy"]  # white space to Python alone


def test_a_long_run_of_spaces_is_walked_once() -> None:
    text = " " * 200_000 + "x"
    cut = Finder({" ": 1}, {" ": ("rstrip", "lstrip")}).cut(text)
    assert (len(cut), cut[-1]) == (400_001, "x")


def test_words_of_the_library() -> None:
    assert all(map(is_word, "aZ_9\u0301\u0bbe\u203f\u24b6\u2160\u200d"))
    assert not any(map(is_word, ["", " ", "-", "\u00b2", "\u20ac", "\U0001f600"]))


def test_tokens_that_are_looked_for_before_and_after_the_text_is_normalized() -> None:
    tokens = {1: Added("A", False), 2: Added("B", False, ("normalized",))}
    raw, normalized = finders(tokens, str.lower)
    assert (raw.ids, normalized.ids) == ({"A": 1}, {"b": 2})


def test_thousands_of_added_tokens_are_found_the_longest_first() -> None:
    names = [f"<unused{n}>" for n in range(3000)] + ["a", "ab", "abc", "\n", "\n\n"]
    finder = Finder({name: n for n, name in enumerate(["", *names])})
    parts = finder.cut("<unused12>x<unused2999>abcabxa\n\n\n<unused")
    found = ["<unused12>", "<unused2999>", "abc", "ab", "a", "\n\n", "\n"]
    assert parts[1::2] == found
    assert "".join(parts[::2]) == "xx<unused"
    begin = time.process_time()
    finder.cut("<p>" * 100_000)
    assert time.process_time() - begin < 3
