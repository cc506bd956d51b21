"""WordPiece against the tokenizers library's own ids (tests/golden/make_wordpiece.py)."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from minift.checkpoints.tokenizers import tokenizer_in
from minift.errors import EncodeError
from minift.tokenizers.wordpiece import WordPiece

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "wordpiece.json").read_text())
SETTINGS = GOLDEN["settings"]


def made(n=0):
    return WordPiece.from_json(copy.deepcopy(SETTINGS[n]["tokenizer"]), {}, "tokenizer.json")


@pytest.mark.parametrize("n", range(len(SETTINGS)))
def test_ids_and_texts_are_the_librarys(n):
    tokenizer, expected = made(n), SETTINGS[n]
    for text, ids, decoded in zip(
        GOLDEN["texts"], expected["ids"], expected["decoded"], strict=True
    ):
        assert tokenizer.encode(text) == ids, ascii(text)
        assert tokenizer.decode(ids, skip_special=False) == decoded, ascii(text)


@pytest.mark.parametrize("n", range(len(SETTINGS)))
def test_pairs_are_wrapped_as_the_library_does(n):
    tokenizer = made(n)
    ids, types = tokenizer.wrap(tokenizer.encode("the film"), tokenizer.encode("is good"))
    assert [ids, types] == SETTINGS[n]["pair"]
    assert tokenizer.wrap([7])[0] == [tokenizer.cls, 7, tokenizer.sep]


def test_pairs_as_a_file_asks_for_them_are_kept():
    data = copy.deepcopy(SETTINGS[0]["tokenizer"])
    ids = data["model"]["vocab"]
    pair = {"sep": ["[SEP]", ids["[SEP]"]], "cls": ["[CLS]", ids["[CLS]"]]}
    data["post_processor"] = {"type": "RobertaProcessing", **pair}
    tokenizer = WordPiece.from_json(data, {}, "tokenizer.json")
    again = WordPiece.from_json(json.loads(tokenizer.files()["tokenizer.json"]), {}, "again")
    for made_of in (tokenizer, again):
        cls, sep = made_of.cls, made_of.sep
        assert made_of.wrap([7], [8]) == ([cls, 7, sep, sep, 8, sep], [0] * 6)


def test_lines_that_end_as_windows_ends_them():
    vocab = "[PAD]\r\n[UNK]\r\n[CLS]\r\n[SEP]\r\nun\r\n"
    assert WordPiece.from_vocab(vocab, {}, "vocab.txt").encode("un") == [4]


def test_the_longest_piece_is_taken_by_hand():
    vocab = "[PAD]\n[UNK]\n[CLS]\n[SEP]\nun\n##aff\n##able\n##a\n!\n"
    tokenizer = WordPiece.from_vocab(vocab, {}, "vocab.txt")
    assert tokenizer.encode("Unaffable!") == [4, 5, 6, 8]
    assert tokenizer.encode("unx") == [1]  # no piece for x: the whole word is unknown
    assert tokenizer.decode([4, 5, 6, 8]) == "unaffable!"
    assert (tokenizer.cls, tokenizer.sep, tokenizer.eos, tokenizer.pad) == (2, 3, 3, 0)


def test_the_name_of_a_special_token_is_text():
    tokenizer = made()
    assert not set(tokenizer.encode("[CLS][SEP] [MASK]")) & set(tokenizer.special.values())


@pytest.mark.parametrize("n", range(len(SETTINGS)))
def test_what_is_saved_gives_the_same_ids(n, tmp_path):
    tokenizer = made(n)
    for name, raw in tokenizer.files().items():
        (tmp_path / name).write_bytes(raw)
    again = tokenizer_in(tmp_path)
    assert isinstance(again, WordPiece)
    assert again.settings == tokenizer.settings
    assert [again.encode(t) for t in GOLDEN["texts"]] == SETTINGS[n]["ids"]
    (tmp_path / "tokenizer.json").unlink()  # a folder of older times
    alone = tokenizer_in(tmp_path)
    assert [alone.encode(t) for t in GOLDEN["texts"]] == SETTINGS[n]["ids"]


def test_an_id_that_is_not_there_is_refused():
    with pytest.raises(EncodeError, match="allowed 0 to"):
        made().decode([10**6])
