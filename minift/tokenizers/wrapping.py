"""What a model expects around a text, or around two: special tokens, and the types of all tokens.

    BERT      [CLS] A [SEP]     [CLS] A [SEP] B [SEP]     types  0 0 0     0 0 0 1 1
    RoBERTa   <s> A </s>        <s> A </s> </s> B </s>           0 0 0     0 0 0 0 0 0
    Llama     <bos> A           <bos> A <bos> B                  0 0       0 0 1 1

`post_processor.py` reads and writes it as tokenizer.json has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Part = tuple[int | str, int]  # a token's id, or "A" or "B" for a text; and the token type


@dataclass(frozen=True)
class Wrapping:
    """The parts around one text, A, and around two."""

    single: tuple[Part, ...] = (("A", 0),)
    pair: tuple[Part, ...] = (("A", 0), ("B", 1))

    def __call__(
        self, ids: Sequence[int], other: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and token types of a text, or of two."""
        texts = {"A": ids, "B": other or ()}
        wrapped: list[int] = []
        types: list[int] = []
        for part, kind in self.single if other is None else self.pair:
            new = (part,) if isinstance(part, int) else texts[part]
            wrapped += new
            types += [kind] * len(new)
        return wrapped, types


def after(bos: int | None) -> Wrapping:
    """BOS before every text, or nothing at all."""
    if bos is None:
        return Wrapping()
    single: tuple[Part, ...] = ((bos, 0), ("A", 0))
    return Wrapping(single=single, pair=(*single, (bos, 1), ("B", 1)))


def ended(wrapping: Wrapping, eos: int) -> Wrapping:
    """The same, with EOS behind every text."""
    single: tuple[Part, ...] = (*wrapping.single, (eos, 0))
    return Wrapping(single=single, pair=(*single, *((what, 1) for what, _ in single[:-2]),
                                         ("B", 1), (eos, 1)))  # fmt: skip


def around(cls: int, sep: int) -> Wrapping:
    """[CLS] A [SEP] and [CLS] A [SEP] B [SEP]: BERT, and all that came from it."""
    single: tuple[Part, ...] = ((cls, 0), ("A", 0), (sep, 0))
    return Wrapping(single=single, pair=(*single, ("B", 1), (sep, 1)))


def twice_around(cls: int, sep: int) -> Wrapping:
    """<s> A </s> and <s> A </s> </s> B </s>, all of type 0: RoBERTa."""
    single: tuple[Part, ...] = ((cls, 0), ("A", 0), (sep, 0))
    return Wrapping(single=single, pair=(*single, (sep, 0), ("B", 0), (sep, 0)))
