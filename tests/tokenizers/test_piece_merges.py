"""BPE of pieces by its own merges: the tokenizers library as oracle, and by hand."""

from __future__ import annotations

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from minift.errors import ConfigError, EncodeError, FormatError
from minift.tokenizers.sentencepiece import SentencePiece

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden/merges.json").read_text())
BASE, TEXTS = GOLDEN["base"], GOLDEN["texts"]
FORMS = {form["name"]: form for form in GOLDEN["forms"]}


def changed(parts: dict[str, Any]) -> dict[str, Any]:
    return BASE | parts | {"model": BASE["model"] | parts.get("model", {})}


def read(name: str) -> SentencePiece:
    return SentencePiece.from_json(changed(FORMS[name]["parts"]), None, "tokenizer.json")


@pytest.mark.parametrize("name", FORMS)
def test_ids_are_those_of_the_library(name: str) -> None:
    ours = read(name)
    for text, ids in zip(TEXTS, FORMS[name]["ids"], strict=True):
        assert ours.encode(text) == ids, ascii(text)


@pytest.mark.parametrize("name", FORMS)
def test_what_is_saved_is_read_again(name: str) -> None:
    first = read(name)
    files = first.files()
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    config = json.loads(files["tokenizer_config.json"])
    again = SentencePiece.from_json(json.loads(files["tokenizer.json"]), config, "t")
    assert again.files() == files
    assert again.special == first.special
    for text in TEXTS:
        for after in (None, 1, 300):
            assert again.encode(text, after=after) == first.encode(text, after=after)


@pytest.mark.parametrize("name", ["prepended", "always, False", "gemma"])
def test_a_text_in_two_parts_is_the_text(name: str) -> None:
    ours = read(name)
    for text, more in pairwise(TEXTS):
        ids = ours.encode(text)
        ids += ours.encode(more, after=ids[-1] if ids else None)
        assert ours.decode(ids).lstrip(" ") == (text + more).replace("▁", " ").lstrip(" ")


def test_a_part_after_a_special_token() -> None:
    """With BOS before it: a first space as at the start, or none, as the file has it."""
    the = {name: read(name).encode("the") for name in ("always, False", "first, False", "gemma")}
    assert read("always, False").encode("the", after=1) == the["always, False"]
    assert read("first, False").encode("the", after=1) == the["gemma"]
    assert read("first, False").encode("the") == the["always, False"] != the["gemma"]
    assert read("prepended").encode("the", after=1) == the["always, False"]


def test_the_class_that_the_configuration_names_decides_the_first_space() -> None:
    data = changed(FORMS["prepended"]["parts"])

    def ids(text: str, **config: Any) -> list[int]:
        with pytest.warns(UserWarning, match="class (Code)?(Ll|G).* puts the first space"):
            return SentencePiece.from_json(data, config, "t").encode(text)

    first, always = (read(name) for name in ("first, False", "always, False"))
    for text in (" the", "the", "a <s> b"):
        assert ids(text, tokenizer_class="LlamaTokenizerFast") == first.encode(text)
        assert ids(text, tokenizer_class="LlamaTokenizer", legacy=True) == always.encode(text)
        assert ids(text, tokenizer_class="CodeLlamaTokenizer", legacy=True) == first.encode(text)
        never = {"tokenizer_class": "LlamaTokenizer", "add_prefix_space": False}
        assert ids(text, **never) == read("never, False").encode(text)
        assert ids(text, tokenizer_class="GemmaTokenizer") == read("gemma").encode(text)
    for config in (
        {"tokenizer_class": "LlamaTokenizer", "model_type": "mistral"},
        {"tokenizer_class": "PreTrainedTokenizerFast"},
    ):
        at_its_word = SentencePiece.from_json(data, config, "t")
        assert at_its_word.encode(" the") == read("prepended").encode(" the")


def test_special_tokens_are_plain_text_whatever_merges_make_them() -> None:
    vocab = {"<unk>": 0, "ab": 1, "a": 2, "b": 3, "▁": 4}
    data = changed({"pre_tokenizer": FORMS["never, True"]["parts"]["pre_tokenizer"]})
    data |= {"added_tokens": [{"id": 1, "content": "ab", "special": True}]}
    data["model"] |= {"vocab": vocab, "merges": [["a", "b"]], "byte_fallback": False}
    ours = SentencePiece.from_json(data, {"eos_token": "ab"}, "t")
    assert ours.encode("ab") == [2, 3]
    assert ours.special == {"<unk>": 0, "ab": 1}
    assert ours.encode("abc") == [2, 3, 0]
    data["model"]["unk_token"] = None
    with pytest.raises(EncodeError, match=r"U\+0063, allowed characters that the vocabulary has"):
        SentencePiece.from_json(data, {"eos_token": "ab"}, "t").encode("abc")
    data["model"]["merges"] = [["a", "c"]]
    with pytest.raises(FormatError, match="found c, allowed tokens of the vocabulary") as caught:
        SentencePiece.from_json(data, {"eos_token": "ab"}, "t")
    assert caught.value.code == "out-of-range"


def test_of_a_pair_listed_twice_the_later_counts() -> None:
    """By hand, and as the library has it: a b first, or b c."""
    data = changed({"pre_tokenizer": FORMS["never, True"]["parts"]["pre_tokenizer"]})
    names = ["<unk>", "</s>", "a", "b", "c", "ab", "bc"]
    data["model"] |= {"vocab": {t: i for i, t in enumerate(names)}, "byte_fallback": False}
    data["added_tokens"] = [{"id": 1, "content": "</s>", "special": True}]
    for merges, ids in (
        ([["a", "b"], ["b", "c"]], [5, 4]),
        ([["a", "b"], ["b", "c"], ["a", "b"]], [2, 6]),
    ):
        data["model"]["merges"] = merges
        assert SentencePiece.from_json(data, None, "t").encode("abc") == ids


def test_a_long_text_without_a_space_takes_no_time() -> None:
    ours, begin = read("first, False"), time.process_time()
    assert len(ours.encode("灯塔在海边。the" * 10_000)) > 10_000
    assert time.process_time() - begin < 10


def test_merges_that_no_scores_can_say_have_no_place_in_gguf() -> None:
    with pytest.raises(ConfigError, match="whose merges no scores can say"):
        read("gemma").gguf(600)
