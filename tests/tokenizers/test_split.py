"""The four patterns: kinds of characters against the reference's, and cuts worked by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minift.tokenizers.split import PATTERNS, Kinds

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden/tokens.json").read_text())["kinds"]


def members(ranges: str) -> set[int]:
    ends = [part.split("-") for part in ranges.split()]
    return {code for low, high in ends for code in range(int(low, 16), int(high, 16) + 1)}


def test_every_character_is_of_the_kind_that_the_reference_gives_it() -> None:
    letters, numbers, spaces = (members(GOLDEN[kind]) for kind in "LNS")
    kinds = Kinds({0x85: "\t", 0x17F: "S"})
    for code in range(0x80, 0x110000):
        kind = kinds[code]
        assert kind.isalpha() == (code in letters), hex(code)
        assert kind.isdigit() == (code in numbers), hex(code)
        assert kind.isspace() == (code in spaces), hex(code)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt2", "It's 123  dogs", ["It", "'s", " 123", " ", " dogs"]),
        ("gpt2", "IT'S", ["IT", "'", "S"]),
        ("gpt2", "a\x1cb", ["a", "\x1c", "b"]),  # white space to Python, not to the pattern
        ("gpt2", "né 灯 ٣!", ["né", " 灯", " ٣", "!"]),
        ("gpt2", "x\xa0 y", ["x", "\xa0", " y"]),
        ("smollm", "It's 123  dogs", ["It", "'s", " ", "1", "2", "3", " ", " dogs"]),
        ("smollm", "a  5", ["a", "  ", "5"]),
        ("smollm", "a  x", ["a", " ", " x"]),
        ("llama3", "IT'S 12345\n\n x", ["IT", "'S", " ", "123", "45", "\n\n", " x"]),
        ("llama3", "(word)!\n", ["(word", ")!\n"]),
        ("llama3", "'ſo", ["'ſ", "o"]),  # the long s is an s where case is ignored
        ("qwen2", "12 'll", ["1", "2", " '", "ll"]),
    ],
)
def test_cuts(name: str, text: str, words: list[str]) -> None:
    assert PATTERNS[name].words(text) == words


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_words_joined_are_the_text(name: str) -> None:
    every = "".join(chr(c) for c in range(0x3100) if c % 7)
    assert "".join(PATTERNS[name].words(every)) == every
    assert PATTERNS[name].words("") == []
