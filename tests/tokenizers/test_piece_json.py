"""tokenizer.json of pieces: ids against transformers, merges by hand, and hostile files."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minift.errors import FormatError, Notice
from minift.tokenizers.piece_json import can_write, is_pieces, scores_of
from minift.tokenizers.post_processor import to_json
from minift.tokenizers.sentencepiece import SentencePiece
from minift.tokenizers.wrapping import after, around

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden/pieces.json").read_text())
MODEL = base64.b64decode(GOLDEN["models"]["plain"])
FAST = GOLDEN["fast"]
TEXTS = GOLDEN["texts"]
NAMED = ("<s>", "</s>", "<unk>")  # of special tokens, which transformers finds in texts


@pytest.mark.parametrize("n", range(len(FAST)))
def test_ids_are_those_that_transformers_finds(n: int) -> None:
    fast = FAST[n]
    assert is_pieces(fast["tokenizer"])
    ours = SentencePiece.from_json(fast["tokenizer"], None, "tokenizer.json")
    beside = SentencePiece.from_model(MODEL, {}, "tokenizer.model")
    assert ours.legacy is fast["legacy"]
    count = 0
    for text, ids in zip(TEXTS, fast["ids"], strict=True):
        if not any(name in text for name in NAMED):
            assert ours.encode(text) == ids, text
            if fast["legacy"]:
                assert beside.encode(text) == ids, text
            count += 1
    assert count > 15
    assert ours.model.pieces == beside.model.pieces
    assert ours.special == beside.special
    assert (ours.bos, ours.eos, ours.add_bos) == (1, 2, False)  # it has no post-processor


def test_a_text_that_begins_with_a_space_gets_no_other_where_the_file_says_so() -> None:
    legacy, modern = (SentencePiece.from_json(f["tokenizer"], None, "t") for f in FAST)
    assert legacy.encode(" the") != modern.encode(" the") == modern.encode("the")
    assert modern.encode("the", after=1) == modern.encode("the", after=5) != modern.encode("the")


def test_a_model_written_as_merges_is_read_again() -> None:
    for config in ({}, {"tokenizer_class": "LlamaTokenizer"}, {"add_prefix_space": False}):
        more = {"chat_template": "x", "pad_token": "</s>"}
        first = SentencePiece.from_model(MODEL, config | more, "m")
        files = first.files()
        assert set(files) == {"tokenizer.model", "tokenizer.json", "tokenizer_config.json"}
        written = json.loads(files["tokenizer.json"])
        saved = json.loads(files["tokenizer_config.json"])
        assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"
        again = SentencePiece.from_json(written, saved, "tokenizer.json")
        assert again.files() == {name: files[name] for name in again.files()}
        assert sorted(written["model"]["merges"]) == sorted(FAST[0]["tokenizer"]["model"]["merges"])
        draw = random.Random(3)
        texts = TEXTS + ["".join(draw.choices("the lamp▁\n é灯", k=12)) for _ in range(200)]
        for text in texts:
            for last in (None, 1, 300):
                assert again.encode(text, after=last) == first.encode(text, after=last)


def test_models_that_tokenizer_json_cannot_hold_are_saved_without_it() -> None:
    tokens = base64.b64decode(GOLDEN["models"]["tokens"])  # has user-defined pieces
    assert "tokenizer.json" not in SentencePiece.from_model(tokens, None, "m").files()
    hidden = {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]}
    first = SentencePiece.from_model(tokens, hidden, "m")
    assert "tokenizer.json" in first.files()
    bare = {"add_prefix_space": False}  # after a piece that is found there is no space either way
    files = SentencePiece.from_model(tokens, bare, "m").files()
    again = SentencePiece.from_json(json.loads(files["tokenizer.json"]), None, "t")
    text = "the<start_of_turn>the lamp"
    assert 5 in again.encode(text) == SentencePiece.from_model(tokens, bare, "m").encode(text)
    # No form of the file has normalization rules.
    rules = replace(first.model, table=b"x")
    assert not can_write(rules, first.settings)
    assert can_write(first.model, first.settings)


def by_hand(**changes: Any) -> dict[str, Any]:
    """<unk> <s> </s>, the bytes, then ▁ a b c ab abc; b c is no piece."""
    vocab = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>"])}
    vocab |= {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    vocab |= {text: 259 + i for i, text in enumerate(["▁", "a", "b", "c", "ab", "abc"])}
    added = [{"id": i, "content": t, "special": True} for i, t in enumerate(list(vocab)[:3])]
    data = copy.deepcopy(FAST[0]["tokenizer"]) | {"added_tokens": added}
    data["model"] |= {"vocab": vocab, "merges": [["a", "b"], ["ab", "c"]]}
    for key, value in changes.items():
        inner = data
        *parents, last = key.split("__")
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return data


def test_merges_by_hand() -> None:
    """ "abc" -> ab c -> abc; "acab" -> a c ab."""
    ours = SentencePiece.from_json(by_hand(), None, "tokenizer.json")
    space, a, _, c, ab, abc = range(259, 265)
    assert ours.encode("abc") == [space, abc]
    assert ours.encode("acab") == [space, a, c, ab]
    assert ours.encode("\n") == [space, 3 + 10]
    scores = scores_of(ours.model.pieces, ours.model.types, [("a", "b"), ("ab", "c")], "t")
    assert scores[ab] > scores[abc]
    bare = SentencePiece.from_json(
        by_hand(normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        None,
        "t",
    )
    assert bare.encode("ab") == [ab]
    assert bare.decode([space, ab]) == " ab"


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}


def changed(place: str, value: Any) -> dict[str, Any]:
    return by_hand(**{place: value})


BAD_VOCAB = by_hand()["model"]["vocab"]
ROW = {"id": 265, "content": "<x>", "special": True}
ADDED = by_hand()["added_tokens"]
NAMES = {1: "<s>", 2: "</s>"}
LIES = [
    ("surprise", 1, "surprise", "unknown-field"),
    ("model", None, "allowed dict", "bad-type"),
    ("model__surprise", 1, "surprise", "unknown-field"),
    ("model__type", "Unigram", "one of BPE", "unknown-field"),
    ("model__byte_fallback", 1, "byte_fallback", "bad-type"),
    ("model__fuse_unk", "yes", "fuse_unk", "bad-type"),
    ("model__ignore_merges", 0, "ignore_merges", "bad-type"),
    ("model__dropout", 0.1, "dropout", "unknown-field"),
    ("model__end_of_word_suffix", "</w>", "end_of_word_suffix", "unknown-field"),
    ("model__unk_token", 5, "unk_token", "bad-type"),
    ("model__unk_token", "<none>", "unk_token", "missing-field"),
    ("model__vocab", [], "allowed dict", "bad-type"),
    ("model__vocab", {}, "1 to 4,000,000", "limit"),
    ("model__vocab", BAD_VOCAB | {"a": 0}, "each once", "dup-key"),
    ("model__vocab", BAD_VOCAB | {"a": 265}, "0 to 264", "out-of-range"),
    ("model__vocab", BAD_VOCAB | {"a": True}, "allowed int", "bad-type"),
    ("model__vocab", BAD_VOCAB | {"": 265}, "not empty", "bad-type"),
    ("model__vocab", BAD_VOCAB | {"\ud800": 265}, "valid Unicode", "bad-utf8"),
    ("model__vocab", BAD_VOCAB | {"x" * 65537: 265}, "65,536", "limit"),
    ("model__merges", {}, "allowed list", "bad-type"),
    ("model__merges", [["a"]], "two parts", "bad-type"),
    ("model__merges", ["a b c"], "two parts", "bad-type"),
    ("model__merges", [["a", "b"], ["ab", "c"], ["b", "c"]], "found bc", "out-of-range"),
    ("model__merges", [["<s", ">"], ["a", "b"]], "found <s", "out-of-range"),
    ("normalizer", None, "pre_tokenizer", "unsafe"),
    ("normalizer", {"type": "Lowercase"}, "allowed null, Prepend", "unsafe"),
    ("normalizer", {"type": "Prepend", "prepend": "x"}, "Prepend of", "unsafe"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}, "Prepend of", "unsafe"),
    ("normalizer", REPLACE | {"pattern": {"Regex": "(a+)+$"}}, "Prepend of", "unsafe"),
    ("normalizer", REPLACE | {"pattern": {"String": ""}}, "Prepend of", "unsafe"),
    ("normalizer", REPLACE | {"content": "x" * 65}, "Prepend of", "unsafe"),
    ("normalizer", {"type": "Sequence", "normalizers": [REPLACE] * 9}, "8 steps", "limit"),
    ("normalizer", {"type": "Sequence", "normalizers": [[]]}, "Prepend of", "unsafe"),
    ("normalizer", {"type": "Sequence", "normalizers": 5}, "allowed list", "bad-type"),
    ("normalizer", 5, "Prepend of", "unsafe"),
    ("pre_tokenizer", {"type": "ByteLevel"}, "pre_tokenizer", "unsafe"),
    ("pre_tokenizer", [], "pre_tokenizer", "unsafe"),
    ("pre_tokenizer", METASPACE, "pre_tokenizer", "unsafe"),  # and Prepend: two first spaces
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": 5}, "allowed list", "bad-type"),
    ("decoder", 5, "allowed dict", "bad-type"),
    ("decoder", {"type": "WordPiece"}, "one of Replace", "unknown-field"),
    ("decoder", {"type": "Sequence", "decoders": [5]}, "one of Replace", "unknown-field"),
    ("decoder", {"type": "Sequence", "decoders": {}}, "one of Replace", "unknown-field"),
    ("post_processor", {"type": "Surprise"}, "post_processor.type", "unknown-field"),
    ("added_tokens", 5, "allowed list", "bad-type"),
    ("added_tokens", [5], "an object", "bad-type"),
    ("added_tokens", [{"content": "x"}], "found nothing", "missing-field"),
    ("added_tokens", [*ADDED, ROW, dict(ROW)], "265 again", "dup-key"),
    ("added_tokens", [*ADDED, ROW | {"id": 300}], "265, the next", "hole"),
    ("added_tokens", [*ADDED, ROW | {"id": -1}], "an id", "out-of-range"),
    ("added_tokens", [*ADDED, ROW | {"content": "<s>"}], "each once", "dup-key"),
    ("added_tokens", [*ADDED, ROW | {"content": []}], "allowed str", "bad-type"),
    ("added_tokens", [], "eos_token", "missing-field"),
]


def test_tokens_around_a_text_are_those_of_the_post_processor() -> None:
    """Whatever add_bos_token says, which is said, as in transformers."""
    for made, wrapped, add_bos in (
        (None, [9], False),
        (to_json(after(1), NAMES), [1, 9], True),
        (to_json(after(2), NAMES), [2, 9], False),
        (to_json(around(1, 2), NAMES), [1, 9, 2], True),
    ):
        data = by_hand(post_processor=made)
        ours = SentencePiece.from_json(data, {"add_bos_token": add_bos}, "t")
        assert (ours.wrap([9])[0], ours.add_bos) == (wrapped, add_bos)
        with pytest.warns(Notice, match="in tokenizer_config.json is ignored"):
            other = SentencePiece.from_json(data, {"add_bos_token": not add_bos}, "t")
        assert other.add_bos is add_bos
        assert other.wrap([9]) == ours.wrap([9])


@pytest.mark.parametrize(("place", "value", "text", "code"), LIES)
def test_hostile_files(place: str, value: Any, text: str, code: str) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        SentencePiece.from_json(changed(place, value), None, "folder/tokenizer.json")
    assert caught.value.code == code, caught.value


@pytest.mark.parametrize(
    "pieces",
    [
        ["x" * (65_536 - i) for i in range(15)],
        [chr(0x4E00 + i) + "x" * i + chr(0x8000 + i) for i in range(1300)],
    ],
)
def test_a_megabyte_of_long_pieces_takes_no_time(pieces: list[str]) -> None:
    data = by_hand(model__vocab=BAD_VOCAB | {text: 265 + i for i, text in enumerate(pieces)})
    begin = time.process_time()
    with contextlib.suppress(FormatError):
        SentencePiece.from_json(data, None, "tokenizer.json")
    assert time.process_time() - begin < 1


def test_pairs_of_one_piece_stand_together_where_scores_shall_say_them() -> None:
    pieces, types = ["a", "b", "c", "ab", "abc", "bc"], bytearray([1] * 6)
    merges = [("a", "b"), ("ab", "c"), ("b", "c"), ("a", "bc")]
    with pytest.raises(FormatError, match="apart from others that make abc"):
        scores_of(pieces, types, merges, "t")
    with pytest.raises(FormatError, match="no a bc, which the vocabulary has"):
        scores_of(pieces, types, merges[:2], "t")
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]
    assert list(scores_of(pieces, types, merges, "t")) == [0, 0, 0, -1, -3, -2]


def test_mutated_files_are_read_or_refused_and_nothing_else() -> None:
    draw, refused = random.Random(11), 0
    strange: list[Any] = [None, True, 0, -1, 2**64, 1.5, "", "a", "\ud800", [], [[]], {}, {"a": []}]
    for _ in range(500):
        data = by_hand()
        inner: Any = data
        while True:
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            key = draw.choice(keys)
            deeper = isinstance(inner[key], dict | list) and inner[key]
            if not deeper or draw.random() < 0.2:
                break
            inner = inner[key]
        inner[key] = draw.choice(strange)
        try:
            ours = SentencePiece.from_json(data, None, "tokenizer.json")
            assert ours.decode(ours.encode("Hello 12")) == "Hello 12"
        except FormatError:
            refused += 1
    assert 200 < refused < 500


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""

    def attempt(folder: Path, place: str, value: Any) -> None:
        SentencePiece.from_json(changed(place, value), None, "folder/tokenizer.json")

    return {
        f"{place} {number}": (partial(attempt, place=place, value=value), code)
        for number, (place, value, _, code) in enumerate(LIES)
    }
