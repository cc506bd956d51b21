"""Streamed text: whole characters only, and in sum the same as decoding at once."""

from __future__ import annotations

import json
import random
from pathlib import Path

from minift.tokenizers.byte_bpe import ByteBPE
from minift.tokenizers.stream import TextStream

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden/tokens.json").read_text())
TOKENIZER = ByteBPE.from_json(GOLDEN["tokenizer"], {"eos_token": "<|im_end|>"}, "tokenizer.json")
BYTE = {TOKENIZER.token_bytes(i): i for i in range(TOKENIZER.vocab_size)}


def push(raw: bytes) -> list[str]:
    stream = TextStream(TOKENIZER)
    return [*(stream.push(BYTE[bytes([byte])]) for byte in raw), stream.close()]


def test_a_character_comes_when_it_is_whole() -> None:
    assert push("aé😀".encode()) == ["a", "", "é", "", "", "", "😀", ""]


def test_half_a_character_becomes_a_replacement_at_the_end() -> None:
    assert push("é".encode()[:1]) == ["", "\ufffd"]
    assert push(b"\xf0\x9fa") == ["", "", "\ufffda", ""]


def test_special_tokens_show_nothing_and_break_no_character() -> None:
    stream = TextStream(TOKENIZER)
    first, second = ("é".encode()[n : n + 1] for n in range(2))
    shown = [stream.push(i) for i in (BYTE[first], TOKENIZER.eos, BYTE[second])]
    assert shown == ["", "", "é"]


def test_pieces_joined_are_the_decoded_text() -> None:
    draw = random.Random(5)
    for _ in range(200):
        ids = [draw.randrange(TOKENIZER.vocab_size) for _ in range(15)]
        stream = TextStream(TOKENIZER)
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.close() == TOKENIZER.decode(ids)
