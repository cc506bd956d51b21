"""Text as it is generated: whole characters only, since one character can take several tokens."""

from __future__ import annotations

import codecs
from typing import Protocol


class Decodes(Protocol):
    """What this file needs of a tokenizer."""

    def decode_bytes(self, ids: list[int]) -> bytes: ...


class TextStream:
    """Ids one by one to pieces of text, which joined are `tokenizer.decode` of all the ids."""

    def __init__(self, tokenizer: Decodes):
        self.tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, often none; special tokens show nothing."""
        return self._decoder.decode(self.tokenizer.decode_bytes([token]))

    def close(self) -> str:
        """What is left: U+FFFD for a character that never became whole."""
        return self._decoder.decode(b"", final=True)
