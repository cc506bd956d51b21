"""The token that opens every text, where a tokenizer adds one: the one place that adds it."""

from __future__ import annotations

from minift.tokenizers.interface import Tokenizer


def bos_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that open every text: [BOS], or none."""
    return [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []


def encode_with_bos(tokenizer: Tokenizer, text: str) -> list[int]:
    """The ids of a text, after the token that opens every text if there is one."""
    return bos_ids(tokenizer) + tokenizer.encode(text)
