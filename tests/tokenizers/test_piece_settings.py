"""What stands beside the pieces: in JSON and in GGUF metadata, right and wrong."""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minift.errors import ConfigError, FormatError
from minift.tokenizers.piece_model import read
from minift.tokenizers.piece_settings import to_gguf
from minift.tokenizers.sentencepiece import SentencePiece

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden/pieces.json").read_text())
MODELS = {name: base64.b64decode(raw) for name, raw in GOLDEN["models"].items()}
NAN = float("nan")


def metadata(name: str = "plain", **more: Any) -> dict[str, Any]:
    """A model as llama.cpp's converter writes it."""
    model = read(MODELS[name], name)
    ours: dict[str, Any] = {
        "model": "llama",
        "tokens": list(model.pieces),
        "scores": list(model.scores),
        "token_type": list(model.types),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "add_bos_token": True,
        "add_eos_token": False,
    }
    found = {f"tokenizer.ggml.{key}": value for key, value in (ours | more).items()}
    return {key: value for key, value in found.items() if value is not None}


def row(content: Any = "<new>", special: Any = True, **more: Any) -> dict[str, Any]:
    return {"content": content, "special": special} | more


def test_roles_come_from_the_configuration_or_else_from_the_model() -> None:
    ours = SentencePiece.from_model(MODELS["tokens"], None, "m")
    assert (ours.bos, ours.eos, ours.pad, ours.template) == (1, 2, None, None)
    config = {"eos_token": {"content": "[INST]"}, "bos_token": None, "pad_token": "<unk>",
              "chat_template": "x", "additional_special_tokens": None}  # fmt: skip
    ours = SentencePiece.from_model(MODELS["tokens"], config, "m")
    assert (ours.bos, ours.eos, ours.pad, ours.template) == (None, 3, 0, "x")
    assert not ours.add_bos


@pytest.mark.parametrize("name", MODELS)
def test_a_gguf_vocabulary_gives_the_ids_of_its_model(name: str) -> None:
    ours = SentencePiece.from_gguf(metadata(name), "x.gguf")
    theirs = SentencePiece.from_model(MODELS[name], None, "m")
    assert ours.special == theirs.special
    for text, ids, decoded in zip(
        GOLDEN["texts"], GOLDEN["ids"][name], GOLDEN["decoded"][name], strict=True
    ):
        if "<start_of_turn>" not in text or name == "plain":
            assert ours.encode(text) == ids
        assert ours.decode(ids) == decoded
    if name == "tokens":  # llama.cpp puts a space behind what it finds, as at the start
        expected = [5, *ours.encode("user")]
        assert ours.encode("<start_of_turn>user") == expected
    again = SentencePiece.from_model(
        ours.files()["tokenizer.model"], json.loads(ours.files()["tokenizer_config.json"]), "m"
    )
    assert again.special == ours.special
    assert (again.bos, again.eos, again.pad) == (1, 2, None)
    assert [again.encode(t) for t in GOLDEN["texts"]] == [ours.encode(t) for t in GOLDEN["texts"]]


ADDED = {"400": {"content": "<pad>", "special": True}}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("plain", {}),
        ("tokens", {}),
        ("plain", {"legacy": False, "pad_token": "<pad>", "added_tokens_decoder": ADDED}),
        ("plain", {"add_prefix_space": False, "add_bos_token": False, "pad_token": "<unk>"}),
    ],
)
def test_metadata_written_is_read_again(name: str, config: dict[str, Any]) -> None:
    """With 3 rows more than tokens: they get names that no text has."""
    first = SentencePiece.from_model(MODELS[name], config | {"chat_template": "x"}, "m")
    data = first.gguf(first.vocab_size + 3)
    again = SentencePiece.from_gguf(data, "x.gguf")
    assert again.gguf(first.vocab_size + 3) == data
    assert again.special == first.special
    assert again.vocab_size == first.vocab_size + 3
    assert again.encode("[PAD0] the") == first.encode("[PAD0] the")
    for key in ("eos", "bos", "pad", "add_bos", "legacy", "template"):
        assert getattr(again, key) == getattr(first, key), key
    for text in GOLDEN["texts"]:
        for after in (None, 1, 300):
            assert again.encode(text, after=after) == first.encode(text, after=after)
    assert ("minift.tokenizer.legacy" in data) == ("legacy" in config)


def test_a_space_that_is_there_is_told_too() -> None:
    fast = next(row for row in GOLDEN["fast"] if not row["legacy"])
    first = SentencePiece.from_json(fast["tokenizer"], None, "tokenizer.json")
    again = SentencePiece.from_gguf(first.gguf(400), "x.gguf")
    assert again.settings.once
    assert again.encode(" the") == first.encode(" the") == first.encode("the")


@pytest.mark.parametrize("key", ["legacy", "once"])
def test_a_key_of_our_own_is_checked_too(key: str) -> None:
    with pytest.raises(FormatError, match=rf"minift\.tokenizer\.{key}: found 1") as caught:
        SentencePiece.from_gguf(metadata() | {f"minift.tokenizer.{key}": 1}, "x.gguf")
    assert caught.value.code == "bad-type"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"unigram": True}, "a unigram model"),
        ({"table": b"x"}, "normalization rules"),
        ({"trim_spaces": True}, "trimmed"),
        ({"byte_fallback": False}, "no pieces for bytes"),
    ],
)
def test_models_that_gguf_cannot_say(change: dict[str, Any], text: str) -> None:
    ours = SentencePiece.from_model(MODELS["plain"], {}, "m")
    with pytest.raises(ConfigError, match=text):
        to_gguf(replace(ours.model, **change), ours.settings, None, 400)


def test_settings_that_gguf_cannot_say() -> None:
    with pytest.raises(ConfigError, match="no BOS"):
        SentencePiece.from_model(MODELS["plain"], {"bos_token": None}, "m").gguf(400)
    rows = {"400": {"content": "<x>", "special": False, "lstrip": True}}
    with pytest.raises(ConfigError, match=r"neighbours .<x>"):
        SentencePiece.from_model(MODELS["plain"], {"added_tokens_decoder": rows}, "m").gguf(401)


def test_ordinary_added_tokens_are_user_defined_in_gguf() -> None:
    rows = {"400": {"content": "<x>", "special": False}, "401": {"content": "  ", "special": False}}
    first = SentencePiece.from_model(MODELS["plain"], {"added_tokens_decoder": rows}, "m")
    data = first.gguf(402)
    assert data["tokenizer.ggml.token_type"][-2:] == [4, 4]
    again = SentencePiece.from_gguf(data, "x.gguf")
    for text in (*GOLDEN["texts"], "a<x>b  <x> c    d"):
        assert again.encode(text) == first.encode(text)
    assert 400 in again.encode("a<x>")


def spaced(**more: Any) -> dict[str, Any]:
    """As converters write Gemma: runs of spaces, newlines and tags, as they stand in a text."""
    runs = [c * n for c in " \n\t" for n in range(2, 32)] + ["\n", "\t", "<h1>", "<td>"]
    base = metadata()
    grown = {
        "tokens": base["tokenizer.ggml.tokens"] + runs,
        "scores": base["tokenizer.ggml.scores"] + [-1000.0] * len(runs),
        "token_type": base["tokenizer.ggml.token_type"] + [4] * len(runs),
    }
    return metadata(**grown | more)


@pytest.mark.parametrize("prefix", [False, True])
def test_user_defined_pieces_are_found_in_the_text_as_it_is(prefix: bool) -> None:
    """As llama.cpp does: before anything else; what follows begins as a text does."""
    ours = SentencePiece.from_gguf(spaced(add_space_prefix=prefix), "x.gguf")
    bare = SentencePiece.from_gguf(metadata(add_space_prefix=prefix), "x.gguf")
    where = {text: i for i, text in enumerate(ours.model.pieces)}
    assert ours.decode_bytes([where["   "]]) == b"   "
    for c in " \n\t":
        for n in range(1, 41):
            runs = [31, n - 31] if n > 31 else [n]
            for before, behind in (("", ""), ("the", ""), ("the", "a"), ("", "lamp")):
                expected = bare.encode(before)
                if n == 1 and c == " ":
                    assert ours.encode(before + c + behind) == bare.encode(before + c + behind)
                    continue
                single = bare.encode(c + behind, after=None if prefix else 5)
                if runs[-1] == 1 and c == " ":
                    expected += [where[c * 31], *single]
                else:
                    expected += [where[c * run] for run in runs] + bare.encode(behind)
                assert ours.encode(before + c * n + behind) == expected, (c, n, before, behind)
    tags = [where["<h1>"], *bare.encode("a"), where["\n"], where["<td>"], where["\t\t"]]
    assert ours.encode("<h1>a\n<td>\t\t") == tags


def test_user_defined_pieces_survive_every_way_of_saving() -> None:
    first = SentencePiece.from_gguf(spaced(add_space_prefix=False), "x.gguf")
    files = first.files()
    assert set(files) == {"tokenizer.json", "tokenizer_config.json"}
    config = json.loads(files["tokenizer_config.json"])
    again = SentencePiece.from_json(json.loads(files["tokenizer.json"]), config, "t")
    back = SentencePiece.from_gguf(first.gguf(first.vocab_size), "x.gguf")
    later = SentencePiece.from_gguf(again.gguf(first.vocab_size), "x.gguf")
    draw = random.Random(5)
    for _ in range(300):
        text = "".join(draw.choices([" ", "  ", "\n", "\t", "the", "<h1>", "é", "▁"], k=20))
        for other in (again, back, later):
            assert other.encode(text) == first.encode(text)


def test_what_gguf_leaves_out() -> None:
    bare = metadata(bos_token_id=None, eos_token_id=None, unknown_token_id=None, add_bos_token=None)
    del bare["tokenizer.ggml.scores"]
    assert SentencePiece.from_gguf(bare, "x.gguf").vocab_size == 400
    bare |= {"tokenizer.ggml.scores": SCORES}
    ours = SentencePiece.from_gguf(bare, "x.gguf")
    assert (ours.bos, ours.eos, ours.pad, ours.add_bos) == (1, 2, None, True)
    spaceless = SentencePiece.from_gguf(metadata(add_space_prefix=False), "x.gguf")
    assert spaceless.encode(" Hello") == ours.encode("Hello")
    template = bare | {"tokenizer.chat_template": "text"}
    assert SentencePiece.from_gguf(template, "x.gguf").template == "text"
    types = metadata()["tokenizer.ggml.token_type"]
    controlled = metadata(token_type=[3, *types[1:]])  # unk as a control token
    assert SentencePiece.from_gguf(controlled, "x").encode("灯塔") == ours.encode("灯塔")
    unknown = metadata(token_type=[*types[:-1], 2])  # another unknown token, as some converters do
    assert SentencePiece.from_gguf(unknown, "x").special.keys() - ours.special.keys()
    ended = SentencePiece.from_gguf(metadata(add_eos_token=True), "x.gguf")
    assert ended.wrap([7]) == ([1, 7, 2], [0, 0, 0])
    assert ended.wrap([7], [8]) == ([1, 7, 2, 1, 8, 2], [0, 0, 0, 1, 1, 1])
    empty = metadata(tokens=["", *TOKENS[1:]])
    assert SentencePiece.from_gguf(empty, "x.gguf").model.pieces[0] == "[EMPTY_0]"
    ignored = metadata(remove_extra_whitespaces=True)  # llama.cpp leaves it to unigram models
    assert SentencePiece.from_gguf(ignored, "x.gguf").encode("the  lamp") == ours.encode(
        "the  lamp"
    )


TOKENS = metadata()["tokenizer.ggml.tokens"]
SCORES = metadata()["tokenizer.ggml.scores"]
TYPES = metadata()["tokenizer.ggml.token_type"]
GGUF_LIES = [
    ({"model": "gpt2"}, "allowed llama", "unknown-field"),
    ({"model": 5}, "allowed str", "bad-type"),
    ({"tokens": None}, "found nothing", "missing-field"),
    ({"tokens": "abc"}, "allowed list", "bad-type"),
    ({"scores": SCORES[:-1]}, "400, one a token", "shape-mismatch"),
    ({"token_type": TYPES * 2}, "400, one a token", "shape-mismatch"),
    ({"tokens": [], "scores": [], "token_type": []}, "0 to -1", "out-of-range"),
    ({"tokens": [*TOKENS[:-1], 5]}, r"tokens\[399\]", "bad-type"),
    ({"tokens": [*TOKENS[:-1], "a\0"]}, r"tokens\[399\]", "unsafe"),
    ({"tokens": [*TOKENS[:-1], "\ud800"]}, "valid Unicode", "bad-utf8"),
    ({"tokens": [*TOKENS[:-1], "x" * 65537]}, "1 to 65,536", "limit"),
    ({"tokens": [*TOKENS[:-1], "<s>"]}, "each piece once", "dup-key"),
    ({"scores": [NAN, *SCORES[1:]]}, r"scores\[0\]", "out-of-range"),
    ({"scores": [1e39, *SCORES[1:]]}, r"scores\[0\]", "out-of-range"),
    ({"scores": ["0", *SCORES[1:]]}, r"scores\[0\]", "out-of-range"),
    ({"scores": [True, *SCORES[1:]]}, r"scores\[0\]", "out-of-range"),
    ({"token_type": [0, *TYPES[1:]]}, "1 to 6", "out-of-range"),
    ({"token_type": [True, *TYPES[1:]]}, "1 to 6", "out-of-range"),
    ({"token_type": [*TYPES[:-1], 6]}, "byte pieces", "missing-field"),
    (
        {"token_type": [1 if kind == 6 else kind for kind in TYPES[:-1]] + [6]},
        "byte",
        "missing-field",
    ),
    ({"eos_token_id": 400}, "0 to 399", "out-of-range"),
    ({"bos_token_id": -1}, "0 to 399", "out-of-range"),
    ({"padding_token_id": 2**40}, "0 to 399", "out-of-range"),
    ({"unknown_token_id": "0"}, "allowed int", "bad-type"),
    ({"add_bos_token": 1}, "allowed bool", "bad-type"),
    ({"add_space_prefix": "no"}, "allowed bool", "bad-type"),
]


@pytest.mark.parametrize(("changes", "text", "code"), GGUF_LIES)
def test_hostile_gguf(changes: dict[str, Any], text: str, code: str) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        SentencePiece.from_gguf(metadata(**changes), "x.gguf")
    assert caught.value.code == code


JSON_LIES: list[tuple[dict[str, Any], str, str]] = [
    ({"eos_token": "<nowhere>"}, "a token of the vocabulary", "out-of-range"),
    ({"eos_token": {"content": ["x"]}}, "a token of the vocabulary", "out-of-range"),
    ({"pad_token": 5}, "a token of the vocabulary", "out-of-range"),
    ({"add_bos_token": "yes"}, "add_bos_token", "bad-type"),
    ({"legacy": 1}, "legacy", "bad-type"),
    ({"add_prefix_space": 0}, "add_prefix_space", "bad-type"),
    ({"chat_template": 5}, "chat_template", "bad-type"),
    ({"additional_special_tokens": "x"}, "a list", "bad-type"),
    ({"added_tokens_decoder": []}, "allowed dict", "bad-type"),
    ({"added_tokens_decoder": {"400": 5}}, "an object", "bad-type"),
    ({"added_tokens_decoder": {"400": {}}}, "found nothing", "missing-field"),
    ({"added_tokens_decoder": {"400": row(5)}}, "allowed str", "bad-type"),
    ({"added_tokens_decoder": {"400": row("")}}, "1 to 65,536 bytes", "out-of-range"),
    ({"added_tokens_decoder": {"400": row("x" * 65537)}}, "1 to 65,536", "out-of-range"),
    ({"added_tokens_decoder": {"400": row("\ud800")}}, "valid Unicode", "bad-utf8"),
    ({"added_tokens_decoder": {"400": row(special=1)}}, "allowed bool", "bad-type"),
    ({"added_tokens_decoder": {"401": row()}}, "400, the next", "hole"),
    ({"added_tokens_decoder": {"-1": row()}}, "an id", "out-of-range"),
    ({"added_tokens_decoder": {"": row()}}, "an id", "out-of-range"),
    ({"added_tokens_decoder": {"4e2": row()}}, "an id", "out-of-range"),
    ({"added_tokens_decoder": {"²": row()}}, "an id", "out-of-range"),
    ({"added_tokens_decoder": {"9" * 30: row()}}, "an id", "out-of-range"),
    ({"added_tokens_decoder": {"4000000": row()}}, "an id", "out-of-range"),
    ({"added_tokens_decoder": {"1": row("<bos>")}}, "'<s>', the piece 1", "dup-key"),
    ({"added_tokens_decoder": {"400": row("<s>")}}, "each once", "dup-key"),
    ({"added_tokens_decoder": {"400": row(), "401": row()}}, "each once", "dup-key"),
    ({"added_tokens_decoder": {"400": row(), "0400": row("<x>")}}, "<new>", "dup-key"),
]


@pytest.mark.parametrize(("config", "text", "code"), JSON_LIES)
def test_hostile_config(config: dict[str, Any], text: str, code: str) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        SentencePiece.from_model(MODELS["plain"], config, "folder/tokenizer.model")
    assert caught.value.path == "folder/tokenizer_config.json"
    assert caught.value.code == code


@pytest.mark.parametrize(
    "added", [{"<x>": "400"}, {"<x>": True}, {"<x>": -1}, {"<x>": 401}, {"": 400}, {"<x>": 0}]
)
def test_hostile_added_tokens(added: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        SentencePiece.from_model(MODELS["plain"], None, "m", added=added)


def test_both_files_may_list_a_token() -> None:
    config = {"added_tokens_decoder": {"400": row("<pad>")}, "pad_token": "<pad>"}
    ours = SentencePiece.from_model(
        MODELS["plain"], config, "m", added={"<pad>": 400, "<s>": 1, "<more>": 401}
    )
    assert (ours.pad, ours.vocab_size) == (400, 402)
    assert ours.special["<pad>"] == 400
    assert "<more>" not in ours.special


def test_a_model_without_an_end() -> None:
    headless = metadata()
    model = SentencePiece.from_gguf(headless, "x").model
    assert model.types[2] == 3
    raw = MODELS["plain"].replace(
        b"\x0a\x04</s>\x15\0\0\0\0\x18\x03", b"\x0a\x04</s>\x15\0\0\0\0\x18\x05"
    )
    assert raw != MODELS["plain"]
    with pytest.raises(FormatError, match="eos_token: found nothing"):
        SentencePiece.from_model(raw, None, "m")


def test_mutated_configurations_are_read_or_refused_and_nothing_else() -> None:
    draw, refused = random.Random(11), 0
    strange: list[Any] = [None, True, 0, -1, 2**64, 1.5, "", "a", "\ud800", [], [[]], {}, {"a": []}]
    good = {
        "added_tokens_decoder": {"0": row("<unk>"), "400": row("<pad>"), "401": row("<x>", False)},
        "additional_special_tokens": ["<pad>", row("<s>")],
        "eos_token": "</s>",
        "bos_token": row("<s>"),
        "pad_token": "<pad>",
        "add_bos_token": True,
        "legacy": False,
    }
    for _ in range(400):
        config = copy.deepcopy(good)
        inner: Any = config
        while True:
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            key = draw.choice(keys)
            deeper = isinstance(inner[key], dict | list) and inner[key]
            if not deeper or draw.random() < 0.2:
                break
            inner = inner[key]
        inner[key] = draw.choice(strange)
        try:
            ours = SentencePiece.from_model(MODELS["plain"], config, "m")
            assert ours.decode(ours.encode("Hello 12")) == "Hello 12"
        except FormatError:
            refused += 1
    assert 200 < refused < 400


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""
    cases: dict[str, tuple[Callable[[Path], object], str]] = {}
    for number, (changes, _, code) in enumerate(GGUF_LIES):
        cases[f"gguf {number}"] = (
            lambda folder, changes=changes: SentencePiece.from_gguf(metadata(**changes), "x.gguf"),
            code,
        )
    for number, (config, _, code) in enumerate(JSON_LIES):
        cases[f"tokenizer_config {number}"] = (
            lambda folder, config=config: SentencePiece.from_model(MODELS["plain"], config, "f/m"),
            code,
        )
    return cases
