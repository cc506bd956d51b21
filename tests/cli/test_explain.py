"""`minift explain`: every method has its facts, and they are those of its code."""

from __future__ import annotations

import json

import pytest

from minift.checkpoints.open import load
from minift.interop.methods import FORMATS
from minift.peft.adapters import trainable
from minift.peft.methods import METHODS, attach


def test_the_table_has_every_method_within_the_width(cli, tiny_model):
    code, text, _ = cli("explain", "--model", tiny_model)
    assert code == 0
    first = [line.split()[0] for line in text.splitlines() if line and line[0] != " "]
    assert first == ["method", *METHODS, "minift"]
    assert max(map(len, text.splitlines())) <= 100
    assert "y = x Wᵀ + s (D(x) Aᵀ) Bᵀ" in text


@pytest.mark.parametrize("word", METHODS)
def test_the_numbers_are_those_of_an_attached_model(cli, tiny_model, word):
    code, text, _ = cli("explain", word, "--model", tiny_model, "--json")
    data = json.loads(text)
    kind, module = METHODS[word]
    model = attach(load(tiny_model)[0], kind())
    counted = sum(p.numel() for p in trainable(model).values())
    assert (code, data["trainable"]) == (0, counted)
    assert data["file"] == (FORMATS[kind].peft_type if kind in FORMATS else "AdapterHub")
    assert data["rate"] == module.RATE


def test_the_fields_of_a_method_count(cli, tiny_model):
    words = ["explain", "prompt", "--model", tiny_model, "--prompt-tokens", 3, "--json"]
    assert json.loads(cli(*words)[1])["trainable"] == 3 * 16


@pytest.mark.parametrize("word", METHODS)
def test_a_page_is_what_the_file_says(cli, word):
    code, text, _ = cli("explain", word)
    assert code == 0
    assert METHODS[word][1].__doc__.strip() in text
    assert "trainable  " not in text  # of no model


def test_without_a_model_nothing_is_counted(cli):
    code, text, _ = cli("explain", "--json")
    assert code == 0
    assert set(json.loads(text)) == set(METHODS)
    assert not any("trainable" in row for row in json.loads(text).values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["lara"], 'explain: found "lara", allowed lora'),
        (["lora", "--model", "no-such"], 'no model, file or folder "no-such" here'),
        (["lora", "--model", "MODEL", "--rank", "99"], ""),
        (["lora", "--rank", "0"], "rank: found 0"),
        (["ia3", "--rank", "2"], "--rank belongs to the method lora, and the method is ia3"),
    ],
)
def test_what_is_refused(cli, tiny_model, words, message):
    code, _, err = cli("explain", *(tiny_model if w == "MODEL" else w for w in words))
    assert code == (2 if message else 0)
    assert message in err


@pytest.mark.parametrize("word", METHODS)
def test_a_python_without_docstrings_still_has_the_facts(cli, monkeypatch, word):
    monkeypatch.setattr(METHODS[word][1], "__doc__", None)
    code, text, err = cli("explain", word)
    assert (code, err) == (0, "")
    about = METHODS[word][1].ABOUT
    for fact in (about.equation, about.paper, about.changes, about.merging, about.use):
        assert fact in text
