"""Which file says the role of a token, as transformers 5 reads them; what else stands there."""

from __future__ import annotations

from typing import Any

import pytest

from minift.errors import FormatError
from minift.tokenizers.beside import Beside, named
from minift.tokenizers.vocabulary import Added

FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
ROWS = {"2": {"content": "</s>", "special": True} | FLAGS}


def settings(config: Any = None, roles: Any = None) -> dict[str, Any]:
    found = Beside("folder", config, roles).settings()
    assert found is not None
    return found


def test_the_map_goes_first_unless_the_configuration_lists_the_added_tokens() -> None:
    config, roles = {"eos_token": "</s>", "pad_token": None}, {"eos_token": "<e>", "bos_token": ""}
    assert settings(config, roles) == {"eos_token": "<e>", "pad_token": None, "bos_token": None}
    listed = settings(config | {"added_tokens_decoder": ROWS}, roles)
    assert (listed["eos_token"], listed["pad_token"], listed["bos_token"]) == ("</s>", None, None)
    assert Beside("folder").settings() is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("<s>", "<s>"),
        ("", None),
        (None, None),
        ({"content": "<s>"}, "<s>"),
        ({"content": ""}, None),
    ],
)
def test_a_token_is_written_as_a_text_or_an_object(value: object, text: str | None) -> None:
    assert named(value, "c.json", "eos_token") == text


@pytest.mark.parametrize("value", [5, True, ["<s>"], {}, {"content": None}, {"content": 5}])
def test_what_is_no_token_is_refused(value: object) -> None:
    with pytest.raises(FormatError, match="allowed a token's text, or null"):
        settings({"eos_token": value})


def test_special_tokens_without_a_role() -> None:
    beside = Beside("folder")
    assert beside.more_special({"extra_special_tokens": {"image_token": "<i>"}}) == ["<i>"]
    rows = [{"__type": "AddedToken", "content": "<a>"}, "<b>"]
    config = {"additional_special_tokens": rows, "boi_token": "<c>", "eos_token": "<d>"}
    assert beside.more_special(config) == ["<a>", "<b>", "<c>"]
    assert beside.more_special({"chat_token": 5, "unknown": [[]]}) == []  # nobody reads it
    old = settings({}, {"additional_special_tokens": ["<a>"]})
    assert beside.more_special(old) == ["<a>"]


def test_added_tokens_of_either_file() -> None:
    more = {"</s>": 2, "word": 3}
    both = Beside("folder", {"added_tokens_decoder": ROWS}, None, more)
    assert both.listed(set()) == {2: Added("</s>")}
    old = Beside("folder", {}, None, more)
    assert old.listed({"</s>"}) == {2: Added("</s>"), 3: Added("word", False, ("normalized",))}
    empty = {"added_tokens_decoder": {"2": {"content": ""}}}
    assert Beside("folder", empty).listed(set()) == {}
