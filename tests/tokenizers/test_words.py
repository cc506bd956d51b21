"""The cache of words: what it keeps, what it does not, and when it empties."""

from __future__ import annotations

import pytest

from minift.tokenizers import words
from minift.tokenizers.words import Words


def test_a_word_is_worked_out_once_and_long_ones_each_time() -> None:
    asked: list[str] = []

    def work_out(word: str) -> list[int]:
        asked.append(word)
        return [len(word)]

    cache, long = Words(work_out), "x" * 65
    for word in ("a", "bb", "a", long, long, "x" * 64, "x" * 64):
        assert cache[word] == [len(word)]
    assert asked == ["a", "bb", long, long, "x" * 64]


def test_a_full_cache_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CACHED_WORDS", 3)
    cache = Words(lambda word: [ord(word)])
    for word in "abcdefg":
        assert cache[word] == [ord(word)]
        assert 1 <= len(cache) <= 3
    assert list(cache) == ["g"]
