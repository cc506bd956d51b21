"""The tokenizer that a folder holds, by its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minift.checkpoints.tokenizers import template_name, text_in, tokenizer_in
from minift.errors import FormatError
from minift.tokenizers.byte_bpe import ByteBPE
from minift.tokenizers.wordpiece import WordPiece

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = json.loads((GOLDEN / "wordpiece.json").read_text())["settings"][0]["tokenizer"]


def test_the_file_says_which(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    assert isinstance(tokenizer_in(tmp_path), WordPiece)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    )
    assert isinstance(tokenizer_in(tmp_path), WordPiece)


def test_what_a_saved_folder_holds_is_read_again(tmp_path, tiny_tokenizer):
    tokenizer = tiny_tokenizer
    for name, data in tokenizer.files().items():
        (tmp_path / name).write_bytes(data)
    again = tokenizer_in(tmp_path)
    assert isinstance(again, ByteBPE)
    assert again.encode("two  words") == tokenizer.encode("two  words")
    assert template_name(again) == template_name(tokenizer)


def test_no_tokenizer_and_one_that_is_no_text(tmp_path):
    with pytest.raises(FormatError):
        tokenizer_in(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff")
    with pytest.raises(FormatError) as caught:
        text_in(tmp_path / "vocab.txt")
    assert caught.value.code == "bad-utf8"
