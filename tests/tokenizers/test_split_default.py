"""The cuts of llama.cpp's default against the same four patterns in the tokenizers library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minift.tokenizers.byte_bpe import ByteBPE
from minift.tokenizers.split_default import PATTERNS

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden/merges.json").read_text())
ROWS = list(zip(GOLDEN["texts"], GOLDEN["words"], strict=True))


@pytest.mark.parametrize(("text", "words"), ROWS)
def test_words_are_those_of_the_four_patterns(text: str, words: list[str]) -> None:
    assert PATTERNS["default"].words(text) == words


def test_words_by_hand() -> None:
    words = PATTERNS["default"].words("a  12345, b's`` ²³4567")
    assert words == ["a", " ", " ", "123", "45", ",", " b", "'", "s", "``", " ", "²³", "456", "7"]


def test_a_tokenizer_that_cuts_so_is_saved_and_read_again(tiny_tokenizer: ByteBPE) -> None:
    data = tiny_tokenizer.gguf(tiny_tokenizer.vocab_size)
    del data["tokenizer.ggml.pre"]
    with pytest.warns(UserWarning, match="names no pre-tokenizer"):
        first = ByteBPE.from_gguf(data, "x.gguf")
    files = first.files()
    again = ByteBPE.from_json(
        json.loads(files["tokenizer.json"]), json.loads(files["tokenizer_config.json"]), "t"
    )
    for text in GOLDEN["texts"]:
        if not {"\x00", "\x01"} & set(text):
            assert again.encode(text) == first.encode(text)
    assert again.files() == files
    assert first.gguf(first.vocab_size)["tokenizer.ggml.pre"] == "default"
