"""Options: what words become, from tables and from dataclass fields."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from minift.cli.options import Flag, of, parse, verb_help
from minift.cli.verbs import Verb
from minift.errors import ConfigError

FLAGS = (
    Flag("steps", int, None, "updates", least=1),
    Flag("lr", float, 0.5, "rate"),
    Flag("name", str, None, "a name"),
    Flag("words", tuple, (), "some words"),
    Flag("fast", bool, False, "quickly"),
)


@dataclass(frozen=True)
class Recipe:
    lr: float = field(default=0.1, metadata={"help": "rate"})
    steps: int | None = field(default=None, metadata={"help": "updates"})
    words: tuple[str, ...] = field(default=("a",), metadata={"help": "w", "common": True})


def test_the_three_ways_to_write_an_option():
    parsed = parse(["--steps", "3", "--lr=-1e-3", "--fast", "plain"], "word", FLAGS)
    assert parsed.words == ("plain",)
    assert parsed.given == {"steps": 3, "lr": -0.001, "fast": True}
    assert parsed.values == parsed.given | {"name": None, "words": ()}
    assert parse(["--no-fast"], None, FLAGS).flag("fast") is False


def test_values_keep_their_characters():
    parsed = parse(["--name", "a=b --c\n", "--words", "yes, no,"], None, FLAGS)
    assert parsed.flag("name") == "a=b --c\n"
    assert parsed.flag("words") == ("yes", "no")
    assert parse(["--name=--odd"], None, FLAGS).flag("name") == "--odd"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stps", "3"], "unknown option --stps; nearest: --steps"),
        (["--zzz"], "unknown option --zzz$"),
        (["--no-lr"], "unknown option --no-lr"),
        (["--lr"], "--lr needs a value"),
        (["--lr", "--fast"], "--lr needs a value"),
        (["--fast=1"], "--fast takes no value"),
        (["--steps", "two"], 'found "two", allowed a whole number'),
        (["--steps", "0"], "--steps: found 0, allowed 1 or more"),
        (["--lr", "inf"], "allowed a finite number"),
        (["a", "b"], 'unexpected word "b"'),
        ([], "word is missing"),
    ],
)
def test_what_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        parse(words, "word", FLAGS)


def test_words_may_be_numbers_or_pairs():
    ids = Flag("ids", tuple, (), "ids", parts=(int,))
    ranks = Flag("ranks", tuple, (), "ranks", parts=(str, float))
    parsed = parse(
        ["--ids", "3, 4", "--ranks", "q=2,blocks.0.mlp.out.down=1e1"], None, [ids, ranks]
    )
    assert parsed.flag("ids") == (3, 4)
    assert parsed.flag("ranks") == (("q", 2.0), ("blocks.0.mlp.out.down", 10.0))
    assert (ids.takes, ranks.takes) == ("A,B", "A=X,...")
    for words, message in (
        (["--ids", "a"], '--ids: found "a", allowed a whole number'),
        (["--ranks", "q"], '--ranks: found "q", allowed name=value'),
        (["--ranks", "q=x"], '--ranks: found "x", allowed a number'),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(words, None, [ids, ranks])


def test_a_table_of_methods_stands_for_their_fields(monkeypatch):
    monkeypatch.setattr("minift.cli.options.resolve", lambda spec: {"fast": (Recipe, None)})
    flags = of(["anything:METHODS"])
    assert [(f.name, f.method) for f in flags] == [(n, "fast") for n in ("lr", "steps", "words")]
    verb = Verb("train", "does", "minift x")
    shown = verb_help("x", verb, (*flags, Flag("out", str, None, "o")), everything=True)
    out, heading, lr = (shown.index(text) for text in ("--out", "\nfast:\n", "--lr"))
    assert out < heading < lr


def test_a_word_may_be_left_out_or_unwanted():
    assert parse([], "[word]", FLAGS).words == ()
    with pytest.raises(ConfigError, match="unexpected"):
        parse(["a"], None, FLAGS)


def test_a_missing_option_is_asked_for_by_its_name():
    with pytest.raises(ConfigError, match="--name is missing"):
        parse([], None, FLAGS).need("name")


def test_flags_of_a_dataclass_are_its_fields(monkeypatch):
    monkeypatch.setattr("minift.cli.options.resolve", lambda spec: Recipe)
    flags = of(["anything:Recipe"])
    assert [(f.name, f.type, f.default, f.common) for f in flags] == [
        ("lr", float, 0.1, False),
        ("steps", int, None, False),
        ("words", tuple, ("a",), True),
    ]
    parsed = parse(["--steps", "7", "--words", "x,y"], None, flags)
    assert parsed.config(Recipe) == Recipe(0.1, 7, ("x", "y"))
