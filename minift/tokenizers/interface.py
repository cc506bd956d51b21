"""What every tokenizer offers, whatever its algorithm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text to ids and back. Roles that a vocabulary does not have are None."""

    vocab_size: int
    eos: int  # ends a text; [SEP] of an encoder
    bos: int | None
    pad: int | None
    add_bos: bool  # texts begin with BOS
    special: dict[str, int]  # names of special tokens, which in a text are plain text
    template: str | None  # the Jinja text of the chat template that came with the model
    chat_template: str | None  # the name of a template, when the user chose one
    also_ends: frozenset[int]  # tokens that end an answer beside EOS and the template's

    def encode(self, text: str, after: int | None = None) -> list[int]:
        """The ids of `text` and of nothing else; `after` is the token that it follows, if any."""

    def wrap(
        self, ids: Sequence[int], other: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and token types of a text, or two, with the special tokens that the model expects."""

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`."""

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        """The bytes of `ids`, which may end within a character."""

    def token_bytes(self, i: int) -> bytes:
        """The bytes of one token."""

    def chat(
        self, messages: Sequence[Mapping[str, str]], reply: bool = False
    ) -> tuple[list[int], list[int]]:
        """Ids and mask of a conversation; mask 1 = a token to be learned (chat.py)."""

    def files(self) -> dict[str, bytes]:
        """The files of a Hugging Face folder that give the same ids elsewhere."""
