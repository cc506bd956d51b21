"""Sentencepiece tokenizers: the library itself and transformers as oracles, and by properties."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from minift.errors import EncodeError, FormatError
from minift.tokenizers.sentencepiece import SentencePiece
from minift.tokenizers.stream import TextStream

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden/pieces.json").read_text())
MODELS = {name: base64.b64decode(raw) for name, raw in GOLDEN["models"].items()}


def tokenizer(name: str = "plain", **config: Any) -> SentencePiece:
    return SentencePiece.from_model(MODELS[name], config, "folder/tokenizer.model")


def pieces(ours: SentencePiece, ids: list[int]) -> list[str]:
    return [ours.model.pieces[i] for i in ids]


def strange(draw: random.Random) -> str:
    """A text of anything, and of what the models know."""
    known = [
        "the",
        " ",
        "  ",
        "lamp",
        "▁",
        "\n",
        "<s>",
        "[INST]",
        "é",
        "灯",
        "<start_of_turn>",
        "1899",
    ]
    made = []
    for _ in range(draw.randint(0, 12)):
        code = draw.randrange(draw.choice((0x80, 0x800, 0x3000, 0x110000)))
        made.append(
            draw.choice(known) if draw.random() < 0.6 or 0xD800 <= code < 0xE000 else chr(code)
        )
    return "".join(made)


def train(**options: Any) -> bytes:
    draw = random.Random(4)
    words = [
        "the",
        "light",
        "keeper",
        "climbs",
        "stairs",
        "lights",
        "1899",
        "café",
        "灯塔",
        "a",
        "b",
    ]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(draw.choices(words, k=8)) for _ in range(300)]),
        model_writer=out,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return out.getvalue()


@pytest.fixture(scope="module")
def trained() -> dict[str, bytes]:
    bpe = {"model_type": "bpe", "vocab_size": 300, "byte_fallback": True}
    return {
        "bpe": train(**bpe),
        "as it stands": train(
            normalization_rule_name="identity", remove_extra_whitespaces=False, **bpe
        ),
        "no first space": train(add_dummy_prefix=False, remove_extra_whitespaces=False, **bpe),
        "no bytes": train(model_type="bpe", vocab_size=60),
        "unigram": train(model_type="unigram", vocab_size=300, byte_fallback=True),
        "unigram, no bytes": train(model_type="unigram", vocab_size=50),
        "folded": train(normalization_rule_name="nmt_nfkc_cf", **bpe),
        "user-defined": train(user_defined_symbols=["lamp", "a b", "▁the"], **bpe),
    }


KINDS = ["bpe", "as it stands", "no first space", "no bytes", "unigram", "unigram, no bytes",
         "folded", "user-defined"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_texts_are_those_of_the_library(trained: dict[str, bytes], kind: str) -> None:
    raw, draw = trained[kind], random.Random(1)
    ours = SentencePiece.from_model(raw, None, "x.model")
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
    assert ours.vocab_size == theirs.vocab_size()
    assert (ours.bos, ours.eos) == (theirs.bos_id(), theirs.eos_id())
    for text in [*GOLDEN["texts"], *(strange(draw) for _ in range(1000))]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, ascii(text)
        if theirs.unk_id() not in ids:  # which is shown as nothing here, as ⁇ there
            assert ours.decode(ids) == theirs.decode(ids), ascii(text)


@pytest.mark.parametrize("name", MODELS)
def test_ids_and_texts_of_the_golden(name: str) -> None:
    ours = tokenizer(name)
    rows = zip(GOLDEN["texts"], GOLDEN["ids"][name], GOLDEN["decoded"][name], strict=True)
    for text, ids, decoded in rows:
        assert ours.encode(text) == ids
        assert ours.decode(ids) == decoded
        assert decoded == text.replace("▁", " ")  # the identity normalization


def test_the_first_space_of_a_text() -> None:
    """Before "the" there is a space where a text starts, or a part of one after a special token."""
    ours = tokenizer()
    bos, word = ours.bos, ours.encode("the")
    assert pieces(ours, word) == ["▁the"]
    assert ours.encode("the", after=bos) == word
    assert pieces(ours, ours.encode("the", after=word[-1])) != ["▁the"]
    assert ours.encode(" the", after=word[-1]) == word
    modern = tokenizer(legacy=False)
    assert modern.encode("the") == word
    assert modern.encode("the", after=bos) == ours.encode("the", after=word[-1])
    assert modern.encode(" the", after=bos) == word
    never = tokenizer(add_prefix_space=False)
    assert never.encode(" the") == word
    assert never.encode("the") == modern.encode("the", after=bos)
    assert (ours.encode(""), ours.encode("", after=bos), modern.encode("", after=5)) == ([], [], [])


def test_a_text_in_two_parts_is_the_text() -> None:
    ours, draw = tokenizer(), random.Random(2)
    for _ in range(300):
        text, more = strange(draw), strange(draw)
        ids = ours.encode(text)
        ids += ours.encode(more, after=ids[-1] if ids else None)
        assert ours.decode(ids) == (text + more).replace("▁", " ")


def test_decode_drops_the_first_space_and_decode_bytes_does_not() -> None:
    ours = tokenizer()
    ids = ours.encode("the lamp")
    assert ours.decode_bytes(ids) == b" the lamp"
    assert ours.decode(ids) == "the lamp"
    assert ours.decode([ours.eos, *ids]) == "the lamp"
    assert ours.decode([ours.bos, *ids], skip_special=False) == "<s> the lamp"
    assert ours.decode(ours.encode("  x")) == "  x"
    assert tokenizer(add_prefix_space=False).decode(ids) == " the lamp"


def test_pieces_of_bytes() -> None:
    ours = tokenizer()
    ids = ours.encode("😀")
    assert [ours.token_bytes(i) for i in ids] == [b" ", b"\xf0", b"\x9f", b"\x98", b"\x80"]
    assert ours.decode(ids[:3]) == "\ufffd"
    stream = TextStream(ours)
    assert [*map(stream.push, ids), stream.close()] == [" ", "", "", "", "😀", ""]


def test_streamed_text_is_what_the_ids_add() -> None:
    ours, draw = tokenizer(), random.Random(3)
    for _ in range(200):
        ids = [draw.randrange(ours.vocab_size) for _ in range(20)]
        stream = TextStream(ours)
        text = "".join(map(stream.push, ids)) + stream.close()
        assert text == ours.decode_bytes(ids).decode(errors="replace")
        assert ours.decode(ids) == text.removeprefix(" ")


def test_special_tokens_are_plain_text() -> None:
    ours = tokenizer("tokens")
    assert ours.special == {"<unk>": 0, "<s>": 1, "</s>": 2, "[INST]": 3, "[/INST]": 4}
    for name, i in ours.special.items():
        ids = ours.encode(f"a {name} b")
        assert i not in ids
        assert ours.decode([*ids, i]) == f"a {name} b"
        assert ours.token_bytes(i) == name.encode()


def test_a_piece_that_the_configuration_calls_special_is_no_longer_found() -> None:
    turn = "<start_of_turn>"
    found = tokenizer("tokens").encode(f"{turn}user")
    assert 5 in found  # user-defined: the library finds it in any text
    row = {"content": turn, "special": True}
    for config in (
        {"added_tokens_decoder": {"5": row}},
        {"additional_special_tokens": [turn]},
        {"additional_special_tokens": [row]},
        {"pad_token": turn},
    ):
        ours = tokenizer("tokens", **config)
        assert ours.special[turn] == 5
        assert 5 not in ours.encode(f"{turn}user")
        assert ours.decode([5]) == ""
        assert ours.files()["tokenizer.model"] == MODELS["tokens"]


def test_added_tokens_come_after_the_pieces() -> None:
    rows = {
        "400": {"content": "<pad>", "special": True},
        "401": {"content": "<x>", "special": False, "normalized": True},
        "402": {"content": "<x><x>", "special": False},
    }
    ours = tokenizer(added_tokens_decoder=rows, pad_token="<pad>")
    assert (ours.vocab_size, ours.pad) == (403, 400)
    a = ours.encode("a")
    assert ours.encode("a<x>a<x><x><x>") == [*a, 401, *a, 402, 401]
    assert 400 not in ours.encode("<pad>")
    assert ours.decode([400, 401, 402]) == "<x><x><x>"
    again = SentencePiece.from_model(MODELS["plain"], {}, "m", added={"<pad>": 400, "<x>": 401})
    assert again.encode("a<pad>") == [*a, 400]  # nothing says that it is special
    modern = tokenizer(added_tokens_decoder=rows, legacy=False)
    assert modern.encode("a<x> a") == [*a, 401, *a]


def test_a_piece_that_is_listed_as_an_ordinary_added_token_is_found_first() -> None:
    ours, text = tokenizer(), "the keeper climbs the stairs"
    usual = ours.encode(text)
    i, part = next((i, piece) for i, piece in enumerate(ours.model.pieces)
                   if len(piece) > 1 and piece in text and i not in usual)  # fmt: skip
    rows = {str(i): {"content": part, "special": False}}
    listed = tokenizer(added_tokens_decoder=rows, legacy=False)
    assert i in listed.encode(text)
    assert listed.decode(listed.encode(text)) == text
    # With legacy, as LlamaTokenizer and llama.cpp have it, what follows begins as a text does.
    again = tokenizer(added_tokens_decoder=rows).encode(text)
    assert i in again
    assert again != listed.encode(text)


@pytest.mark.parametrize("name", MODELS)
def test_files_give_the_same_tokenizer(name: str) -> None:
    rows = {
        "400": {"content": "<pad>", "special": True},
        "401": {"content": "<x>", "special": False},
    }
    config = {"added_tokens_decoder": rows, "pad_token": "<pad>", "legacy": False,
              "add_bos_token": False, "chat_template": "some text"}  # fmt: skip
    first = tokenizer(name, **config)
    files = first.files()
    written = {"tokenizer.json"} if name == "plain" else set()  # the other has pieces in words
    assert set(files) == {"tokenizer.model", "tokenizer_config.json"} | written
    assert files["tokenizer.model"] == MODELS[name]
    saved = json.loads(files["tokenizer_config.json"])
    again = SentencePiece.from_model(files["tokenizer.model"], saved, "again")
    assert again.files() == files
    assert again.special == first.special
    for field in ("eos", "bos", "pad", "add_bos", "legacy", "template", "vocab_size"):
        assert getattr(again, field) == getattr(first, field), field
    for text in [*GOLDEN["texts"], "a<x>b<pad>"]:
        assert again.encode(text) == first.encode(text)


def test_half_a_surrogate_pair_and_ids_out_of_range() -> None:
    ours = tokenizer()
    with pytest.raises(EncodeError, match=r"U\+D83D, half of a surrogate pair"):
        ours.encode("a \ud83d b")
    for wrong in (-1, 400):
        with pytest.raises(EncodeError, match=f"token id {wrong}, allowed 0 to 399"):
            ours.decode([wrong])
        with pytest.raises(EncodeError):
            ours.token_bytes(wrong)


def test_a_model_that_the_library_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("INTERNAL: something\nin two lines")

    monkeypatch.setattr(sentencepiece, "SentencePieceProcessor", refuse)
    with pytest.raises(FormatError, match="INTERNAL") as caught:
        tokenizer()
    assert "\n" not in str(caught.value)


def test_bos_is_needed_where_texts_start_with_it() -> None:
    assert tokenizer().add_bos
    assert not tokenizer(bos_token=None).add_bos
    with pytest.raises(FormatError, match="bos_token: found nothing"):
        tokenizer(bos_token=None, add_bos_token=True)


VERSIONS = {
    "tokenizer.model.v1": (32000, []),
    "mistral_instruct_tokenizer_240216.model.v2": (32768, ["[INST]", "[/INST]"]),
    "mistral_instruct_tokenizer_240323.model.v3": (32768, ["[INST]", "[/INST]"]),
    "mistral_instruct_tokenizer_241114.model.v7": (32768, ["[INST]", "[SYSTEM_PROMPT]"]),
    "mistral_instruct_tokenizer_241114.model.v7m1": (32768, ["[INST]", "[SYSTEM_PROMPT]"]),
}


@pytest.mark.assets
@pytest.mark.parametrize("version", VERSIONS)
def test_the_models_of_mistral(asset: Callable[[str], Path], version: str) -> None:
    path, (size, names) = asset("mistral-sentencepiece") / version, VERSIONS[version]
    ours = SentencePiece.from_model(path.read_bytes(), None, str(path))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    draw = random.Random(7)
    assert (ours.vocab_size, ours.bos, ours.eos, ours.pad) == (size, 1, 2, None)
    assert ours.files()["tokenizer.model"] == path.read_bytes()
    assert {ours.special[name] for name in names}.isdisjoint(ours.encode(" ".join(names)))
    for text in [*GOLDEN["texts"], *names, *(strange(draw) for _ in range(300))]:
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, ascii(text)
        assert ours.decode(ids) == theirs.decode(ids), ascii(text)
