"""The first space and the normalizer of a tokenizer.json; the ids are compared in test_piece_*."""

from __future__ import annotations

from typing import Any

import pytest

from minift.errors import FormatError, Notice
from minift.tokenizers.piece_spaces import METASPACE, PREPENDED, REPLACE, first_space

FORMS = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "NFC"}, REPLACE]}


def read(normalizer: object, cut: object, config: dict[str, Any] | None = None) -> Any:
    return first_space({"normalizer": normalizer, "pre_tokenizer": cut}, config or {}, "t")


def test_a_normalizer_or_a_pre_tokenizer_puts_the_space() -> None:
    found = read(PREPENDED, None)
    assert (found.prefix, found.legacy, found.once, found.steps) == (
        True,
        True,
        False,
        ((" ", "▁"),),
    )
    found = read(FORMS, METASPACE | {"prepend_scheme": "first"})
    assert (found.prefix, found.legacy, found.once) == (True, False, True)
    assert found.steps == (("NFKC",), ("NFC",), (" ", "▁"))
    assert not read(REPLACE, None).prefix


def test_old_ways_to_write_a_metaspace() -> None:
    """str_rep and add_prefix_space, before there were schemes, and a Sequence of one."""
    old = {"type": "Metaspace", "replacement": "▁", "str_rep": "▁", "add_prefix_space": True}
    for cut, prefix, split in (
        (old, True, True),
        (old | {"add_prefix_space": False}, False, True),
        ({"type": "Sequence", "pretokenizers": [METASPACE]}, True, False),
    ):
        found = read(None, cut)
        assert (found.prefix, found.legacy, found.split) == (prefix, True, split)


def test_a_class_that_transformers_makes_anew_decides() -> None:
    said = r"LlamaTokenizer puts the first space before a text, as in transformers 5"
    with pytest.warns(Notice, match=said):
        found = read(PREPENDED, None, {"tokenizer_class": "LlamaTokenizer"})
    assert (found.prefix, found.legacy, found.once) == (True, False, True)
    assert read(PREPENDED, None, {"tokenizer_class": "PreTrainedTokenizerFast"}).legacy


@pytest.mark.parametrize(("change", "text", "code"), [
    ({"replacement": "_"}, "replacement", "unknown-field"),
    ({"str_rep": " "}, "str_rep", "unknown-field"),
    ({"prepend_scheme": "sometimes"}, "prepend_scheme", "unknown-field"),
    ({"split": 1}, "split", "bad-type"),
    ({"add_prefix_space": "no"}, "add_prefix_space", "bad-type"),
    ({"surprise": 1}, "surprise", "unknown-field"),
])  # fmt: skip
def test_hostile_ways_to_put_a_space_first(change: dict[str, Any], text: str, code: str) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        read(None, METASPACE | change)
    assert caught.value.code == code


@pytest.mark.parametrize("steps", [
    [REPLACE | {"content": " " * 64}] * 4, [{"type": "NFKD"}] * 3 + [REPLACE],
])  # fmt: skip
def test_steps_that_make_a_text_grow_without_end_are_refused(steps: list[object]) -> None:
    with pytest.raises(FormatError, match="at most 1,000") as caught:
        read({"type": "Sequence", "normalizers": steps}, None)
    assert caught.value.code == "limit"
