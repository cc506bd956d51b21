"""Added tokens past the embedding are left out, with a notice; all others stay."""

from __future__ import annotations

import pytest

from minift.errors import Notice
from minift.tokenizers.beside import Beside
from minift.tokenizers.fitting import fitting, rows_of


def row(i, text):
    return {"id": i, "content": text, "special": True}


def test_a_picture_token_of_a_text_model_is_left_out_everywhere():
    data = {"added_tokens": [row(0, "<pad>"), row(4, "<picture>")],
            "model": {"vocab": {"<pad>": 0, "a": 1, "b": 2, "c": 3, "<picture>": 4}}}  # fmt: skip
    config = {"added_tokens_decoder": {"0": {"content": "<pad>"}, "4": {"content": "<picture>"}},
              "pad_token": "<pad>"}  # fmt: skip
    beside = Beside("x", config, None, {"<picture>": 4}, {"vocab_size": 4})
    with pytest.warns(Notice, match="tokens past the model's 4 are left out: '<picture>' as 4"):
        found, left = fitting(data, beside, "x/tokenizer.json")
    assert found["added_tokens"] == [row(0, "<pad>")]
    assert found["model"]["vocab"] == {"<pad>": 0, "a": 1, "b": 2, "c": 3}
    assert left.config == {"added_tokens_decoder": {"0": {"content": "<pad>"}},
                           "pad_token": "<pad>"}  # fmt: skip
    assert left.added == {}


def test_a_role_whose_token_is_left_out_has_none():
    beside = Beside("x", {"pad_token": "[PAD]"}, {"pad_token": {"content": "[PAD]"}},
                    {"[PAD]": 4}, {"vocab_size": 4})  # fmt: skip
    with pytest.warns(Notice, match="are left out"):
        _, left = fitting({}, beside, "x/tokenizer.model")
    assert left.config == {"pad_token": None}
    assert left.roles == {"pad_token": None}


def test_what_fits_or_is_no_added_token_stays():
    data = {"added_tokens": [row(3, "<pad>")], "model": {"vocab": {"a": 0, "b": 9}}}
    for model in ({}, {"vocab_size": 4}, {"text_config": {"vocab_size": 4}}):
        beside = Beside("x", {}, None, None, model)
        assert fitting(data, beside, "x") == (data, beside)
    assert rows_of({"text_config": {"vocab_size": 4}}) == 4
