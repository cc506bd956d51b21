"""tokenizer.json of pieces: ids against transformers, merges by hand, and hostile files."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minift.errors import FormatError
from minift.tokenizers.piece_json import is_pieces
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
    beside = SentencePiece.from_model(MODEL, {}, "tokenizer.model", fast=fast["tokenizer"])
    assert ours.legacy is fast["legacy"]
    count = 0
    for text, ids in zip(TEXTS, fast["ids"], strict=True):
        if not any(name in text for name in NAMED):
            assert ours.encode(text) == ids, text
            assert beside.encode(text) == ids, text
            count += 1
    assert count > 15
    assert ours.model.pieces == beside.model.pieces
    assert ours.special == beside.special
    assert (ours.bos, ours.eos, ours.add_bos) == (1, 2, True)


def test_a_text_that_begins_with_a_space_gets_no_other_where_the_file_says_so() -> None:
    legacy, modern = (SentencePiece.from_json(f["tokenizer"], None, "t") for f in FAST)
    assert legacy.encode(" the") != modern.encode(" the") == modern.encode("the")
    assert modern.encode("the", after=1) == modern.encode("the", after=5) != modern.encode("the")


@pytest.mark.parametrize("n", range(len(FAST)))
def test_what_is_written_is_read_again(n: int) -> None:
    first = SentencePiece.from_model(
        MODEL, {"chat_template": "x", "pad_token": "</s>"}, "m", fast=FAST[n]["tokenizer"]
    )
    files = first.files()
    written = json.loads(files["tokenizer.json"])
    config = json.loads(files["tokenizer_config.json"])
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    again = SentencePiece.from_json(written, config, "tokenizer.json")
    assert again.files() == files | {"tokenizer.model": again.files()["tokenizer.model"]}
    from_model = SentencePiece.from_model(files["tokenizer.model"], config, "m", fast=written)
    draw = random.Random(3)
    texts = TEXTS + ["".join(draw.choices("the lamp▁\n é灯", k=12)) for _ in range(200)]
    for text in texts:
        assert again.encode(text) == from_model.encode(text) == first.encode(text)
    assert written["model"]["merges"] == FAST[n]["tokenizer"]["model"]["merges"] or sorted(
        written["model"]["merges"]
    ) == sorted(FAST[n]["tokenizer"]["model"]["merges"])


def test_models_that_tokenizer_json_cannot_hold_are_saved_without_it() -> None:
    tokens = base64.b64decode(GOLDEN["models"]["tokens"])  # has user-defined pieces
    assert "tokenizer.json" not in SentencePiece.from_model(tokens, None, "m").files()
    hidden = {"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]}
    assert "tokenizer.json" in SentencePiece.from_model(tokens, hidden, "m").files()
    # No form of the file puts a space first at the start alone, and a second before a space.
    assert "tokenizer.json" not in SentencePiece.from_model(MODEL, {"legacy": False}, "m").files()


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
    assert ours.model.scores[ab] > ours.model.scores[abc]
    bare = SentencePiece.from_json(
        by_hand(normalizer={"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        None,
        "t",
    )
    assert bare.encode("ab") == [ab]
    assert bare.decode([space, ab]) == " ab"


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
    ("model__byte_fallback", False, "byte_fallback", "bad-type"),
    ("model__dropout", 0.1, "dropout", "unknown-field"),
    ("model__ignore_merges", True, "ignore_merges", "unknown-field"),
    ("model__unk_token", 5, "unk_token", "missing-field"),
    ("model__unk_token", "<none>", "unk_token", "missing-field"),
    ("model__unk_token", "<0x00>", "unk_token", "missing-field"),
    ("model__vocab", [], "allowed dict", "bad-type"),
    ("model__vocab", {}, "all 256 bytes", "missing-field"),
    ("model__vocab", BAD_VOCAB | {"a": 0}, "each once", "dup-key"),
    ("model__vocab", BAD_VOCAB | {"a": 265}, "0 to 264", "out-of-range"),
    ("model__vocab", BAD_VOCAB | {"a": True}, "allowed int", "bad-type"),
    ("model__vocab", BAD_VOCAB | {"": 265}, "found 0 bytes", "out-of-range"),
    ("model__vocab", BAD_VOCAB | {"\0": 265}, "no character 0", "unsafe"),
    ("model__vocab", BAD_VOCAB | {"\ud800": 265}, "valid Unicode", "bad-utf8"),
    ("model__vocab", BAD_VOCAB | {"x" * 65537: 265}, "65,536", "limit"),
    ("model__merges", {}, "allowed list", "bad-type"),
    ("model__merges", [["a"]], "two parts", "bad-type"),
    ("model__merges", [["a", "b"]], "no ab c", "unsafe"),
    ("model__merges", [["a", "b"], ["ab", "c"], ["b", "c"]], "found bc", "out-of-range"),
    ("model__merges", [["a", "b"], ["a", "b"], ["ab", "c"]], "a b again", "dup-key"),
    ("model__merges", [["<s", ">"], ["a", "b"]], "found <s", "out-of-range"),
    ("normalizer", None, "normalizer", "unsafe"),
    ("normalizer", {"type": "NFKC"}, "a known form", "unsafe"),
    ("normalizer", 5, "a known form", "unsafe"),
    ("pre_tokenizer", {"type": "ByteLevel"}, "pre_tokenizer", "unsafe"),
    ("pre_tokenizer", [], "pre_tokenizer", "unsafe"),
    ("decoder", None, "allowed dict", "bad-type"),
    ("decoder", {"type": "WordPiece"}, "one of Replace", "unknown-field"),
    ("decoder", {"type": "Sequence", "decoders": [5]}, "one of Replace", "unknown-field"),
    ("decoder", {"type": "Sequence", "decoders": {}}, "one of Replace", "unknown-field"),
    ("post_processor", {"type": "Surprise"}, "post_processor.type", "unknown-field"),
    ("post_processor", to_json(after(2), NAMES), "only the BOS token, 1", "unknown-field"),
    ("post_processor", to_json(around(1, 2), NAMES), "after BOS or alone", "unknown-field"),
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
    begin = time.perf_counter()
    with contextlib.suppress(FormatError):
        SentencePiece.from_json(data, None, "tokenizer.json")
    assert time.perf_counter() - begin < 1


def test_pairs_of_one_piece_stand_together() -> None:
    vocab = BAD_VOCAB | {"bc": 265}
    merges = [["a", "b"], ["ab", "c"], ["b", "c"], ["a", "bc"]]
    with pytest.raises(FormatError, match="apart from others that make abc"):
        SentencePiece.from_json(
            by_hand(model__vocab=vocab, model__merges=merges), None, "tokenizer.json"
        )
    merges = [["a", "b"], ["b", "c"], ["ab", "c"], ["a", "bc"]]
    ours = SentencePiece.from_json(by_hand(model__vocab=vocab, model__merges=merges), None, "t")
    assert ours.encode("abc") == [259, 264]


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
