"""BOS is added where the tokenizer says so and has one."""

from __future__ import annotations

import pytest

from minift.tokenizers.bos import bos_ids, encode_with_bos


class Bytes:
    def __init__(self, bos, add_bos):
        self.bos, self.add_bos = bos, add_bos

    def encode(self, text):
        return list(text.encode())


@pytest.mark.parametrize(
    ("bos", "add_bos", "opening"), [(256, True, [256]), (0, True, [0]), (256, False, []),
                                    (None, True, [])],
)  # fmt: skip
def test_bos_is_added_where_the_tokenizer_says_so(bos, add_bos, opening):
    tokenizer = Bytes(bos, add_bos)
    assert bos_ids(tokenizer) == opening
    assert encode_with_bos(tokenizer, "ab") == [*opening, 97, 98]
