"""`--method`: which config the words make, and which words are refused."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from minift.cli.commands import COMMANDS
from minift.cli.method import method_config
from minift.cli.options import parse
from minift.errors import ConfigError
from minift.peft.ia3 import IA3
from minift.peft.lora import LoRA
from minift.peft.methods import METHODS


def read(*words):
    command = COMMANDS["sft"]
    return method_config(parse(words, None, command.options))


def test_the_flags_of_a_method_are_the_fields_of_its_config():
    assert read() == LoRA()
    words = ("--rank", "4", "--dora", "--targets", "q,v", "--ranks", "q=2", "--alphas", "v=3")
    expected = LoRA(rank=4, dora=True, targets=("q", "v"), ranks=(("q", 2),), alphas=(("v", 3.0),))
    assert read(*words) == expected
    assert read("--method", "ia3", "--outputs", "k") == IA3(outputs=("k",))


@pytest.mark.parametrize("word", METHODS)
def test_every_method_can_be_chosen(word):
    assert type(read("--method", word)) is METHODS[word][0]


def test_no_field_is_a_flag_of_two_methods():
    names = [item.name for kind, _ in METHODS.values() for item in fields(kind)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "lara"], 'found "lara", allowed lora, .*; nearest: lora'),
        (["--method", "ia3", "--rank", "4"], "--rank belongs to the method lora, .* is ia3"),
        (["--prefix-tokens", "4"], "--prefix-tokens belongs to the method prefix, .* is lora"),
        (["--adapter", "runs/a", "--rank", "4"], "--rank does not go with --adapter"),
        (["--adapter", "runs/a", "--method", "lora"], "--method does not go with --adapter"),
        (["--method", "prompt", "--prompt-tokens", "0"], "prompt_tokens: found 0"),
    ],
)
def test_what_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        read(*words)


def test_an_adapter_has_its_own_method():
    assert read("--adapter", "runs/a") is None


@pytest.mark.parametrize("word", METHODS)
def test_a_run_with_any_method_can_be_looked_at_and_used(cli, tiny_model, data, tmp_path, word):
    out = tmp_path / "out"
    code, text, err = cli("sft", "--model", tiny_model, "--data", data, "--out", out, "--method",
                          word, "--steps", 2, "--batch-size", 4, "--dtype", "float32")  # fmt: skip
    assert (code, "Traceback" in err) == (0, False)
    assert f"train        {METHODS[word][0]()} · " in text
    facts = json.loads((out / "run.json").read_text())
    assert list(facts["methods"]) == [METHODS[word][0].__name__]
    assert facts["config"]["lr"] == METHODS[word][1].RATE  # none was given
    assert cli("info", out)[0] == 0
    assert cli("eval", "--adapter", out, "--data", data)[0] == 0
    assert cli("generate", "a film", "--adapter", out, "--max-new-tokens", 3)[0] == 0
    code, _, err = cli("merge", out, "--out", tmp_path / "merged")
    if METHODS[word][1].ABOUT.merges:
        assert (code, err) == (0, "")
    else:
        assert (code, err.count("\n")) == (2, 1)
        assert "cannot become weights" in err
