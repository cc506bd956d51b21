"""The files of a WordPiece vocabulary: hostile ones refused, and lines that are no tokens."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path

import pytest

from minift.checkpoints.tokenizers import tokenizer_in
from minift.errors import FormatError
from minift.tokenizers.wordpiece import WordPiece

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "wordpiece.json").read_text())
SETTINGS = GOLDEN["settings"]


def broken(path, value):
    data = copy.deepcopy(SETTINGS[0]["tokenizer"])
    *parents, last = path.split(".")
    place = data
    for name in parents:
        place = place[name]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return data


BAD = [  # what is put where, and the code
    ("model.type", "Unigram", "unknown-field"),
    ("model.vocab", None, "missing-field"),
    ("model.vocab", [], "bad-type"),
    ("model.vocab", {"a": 1}, "dup-key"),
    ("model.vocab", {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 3, "a": 3}, "dup-key"),
    ("model.vocab", {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": True}, "dup-key"),
    ("model.vocab", {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": -1}, "dup-key"),
    ("model.vocab", {"a": 0}, "dup-key"),
    ("model.vocab", {"": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[PAD]": 4}, "dup-key"),
    ("model.max_input_chars_per_word", "100", "bad-type"),
    ("model.continuing_subword_prefix", 3, "bad-type"),
    ("model.extra", 1, "unknown-field"),
    ("normalizer", None, "missing-field"),
    ("normalizer.type", "NFKC", "unknown-field"),
    ("normalizer.lowercase", 1, "bad-type"),
    ("normalizer.strip_accents", "no", "bad-type"),
    ("pre_tokenizer.type", "Whitespace", "unknown-field"),
    ("decoder.type", "ByteLevel", "unknown-field"),
    ("decoder.cleanup", None, "missing-field"),
    ("post_processor.type", "RobertaProcessing", "unknown-field"),
    ("post_processor.single", [], "unknown-field"),
    ("post_processor.single", [{"Sequence": {"id": "C", "type_id": 0}}], "unknown-field"),
    ("post_processor", "x", "bad-type"),
    ("added_tokens", {}, "bad-type"),
    ("added_tokens", [3], "bad-type"),
    ("added_tokens", [{"id": 2, "content": "[UNK]", "special": True}], "dup-key"),
    ("added_tokens", [{"id": 6, "content": "the", "special": False}], "dup-key"),
    ("added_tokens", [{"content": "<nowhere>", "special": True}], "missing-field"),
    ("added_tokens", [{"id": True, "content": "[UNK]", "special": True}], "bad-type"),
    ("added_tokens", [{"id": 0.0, "content": "[PAD]", "special": True}], "bad-type"),
    ("added_tokens", [{"id": 0, "content": ["[PAD]"], "special": True}], "bad-type"),
    ("surprise", 1, "unknown-field"),
    ("model.unk_token", "[PAD]", "unknown-field"),
    ("model.unk_token", 3, "unknown-field"),
    ("model.max_input_chars_per_word", 0, "limit"),
    ("model.max_input_chars_per_word", -5, "limit"),
    ("model.max_input_chars_per_word", 1001, "limit"),
    ("model.max_input_chars_per_word", 10**12, "limit"),
    ("model.max_input_chars_per_word", True, "bad-type"),
    ("model.vocab", {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 4}, "dup-key"),
    ("model.vocab", {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": 2**64}, "dup-key"),
    ("model.vocab", {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": "3"}, "dup-key"),
    ("model.vocab", {str(i): i for i in range(50_000)}, "dup-key"),
    ("decoder.prefix", "@@", "unknown-field"),
    ("decoder.cleanup", "yes", "bad-type"),
    ("normalizer.clean_text", None, "missing-field"),
    ("normalizer.handle_chinese_chars", "yes", "bad-type"),
    ("normalizer.type", "Sequence", "unknown-field"),
    ("pre_tokenizer", [], "bad-type"),
    ("decoder", "WordPiece", "bad-type"),
    ("model", "WordPiece", "bad-type"),
]


@pytest.mark.parametrize(("path", "value", "code"), BAD)
def test_what_is_not_known_is_refused(path, value, code):
    with pytest.raises(FormatError) as caught:
        WordPiece.from_json(broken(path, value), {}, "tokenizer.json")
    assert caught.value.code == code


def test_the_longest_word_at_its_limit():
    data = broken("model.max_input_chars_per_word", 1000)
    assert WordPiece.from_json(data, {}, "tokenizer.json").settings.longest_word == 1000


FIVE = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
BAD_LISTS = [
    ("", "missing-field"), ("a\na\n", "missing-field"), ("[UNK]\n[CLS]\n[SEP]\n", "missing-field"),
    ("a\n\nb", "missing-field"), ("\n", "missing-field"), ("\ufeff" + FIVE, "missing-field"),
    (FIVE.lower(), "missing-field"),
    (FIVE.replace("\n", " "), "missing-field"), (FIVE + "x" * 65_537, "limit"),
    ("\n".join(f"{i}" for i in range(140_000)), "missing-field"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code"), BAD_LISTS, ids=range(len(BAD_LISTS)))
def test_a_vocabulary_that_cannot_be_is_refused(text, code):
    with pytest.raises(FormatError) as caught:
        WordPiece.from_vocab(text, {}, "vocab.txt")
    assert caught.value.code == code


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="UTF-8"):
        tokenizer_in(tmp_path)


def test_switches_of_the_configuration_are_true_or_false():
    for key in ("do_lower_case", "tokenize_chinese_chars", "strip_accents"):
        for value in ("no", 0, []):
            with pytest.raises(FormatError) as caught:
                WordPiece.from_vocab(FIVE, {key: value}, "vocab.txt")
            assert caught.value.code == "bad-type"
        WordPiece.from_vocab(FIVE, {key: None}, "vocab.txt")


def hostile():
    """For tests/hostile.py."""

    def read(folder, path, value):
        WordPiece.from_json(broken(path, value), {}, "tokenizer.json")

    def read_list(folder, text, config):
        WordPiece.from_vocab(text, config, "vocab.txt")

    cases = {
        f"{path} {value!r:.60} {number}": (partial(read, path=path, value=value), code)
        for number, (path, value, code) in enumerate(BAD)
    }
    for number, (text, code) in enumerate(BAD_LISTS):
        cases[f"vocab.txt {number}"] = partial(read_list, text=text, config={}), code
    for config, code in (
        ({"do_lower_case": "no"}, "bad-type"), ({"strip_accents": 0}, "bad-type"),
        ({"tokenize_chinese_chars": 1}, "bad-type"), ({"unk_token": "<nowhere>"}, "missing-field"),
        ({"unk_token": 3}, "bad-type"), ({"cls_token": {"content": 3}}, "bad-type"),
        ({"sep_token": ["[SEP]"]}, "bad-type"), ({"pad_token": {}}, "bad-type"),
        ({"sep_token": False}, "bad-type"),
    ):  # fmt: skip
        name = f"tokenizer_config {config}"
        cases[name] = partial(read_list, text=FIVE, config=config), code
    return cases
