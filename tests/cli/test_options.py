"""Options: what words become, from tables and from dataclass fields."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from minift.cli.options import Flag, flags_of, parse, with_option_names
from minift.errors import ConfigError

FLAGS = (
    Flag("steps", int, None, "updates", minimum=1),
    Flag("lr", float, 0.5, "rate"),
    Flag("name", str, None, "a name"),
    Flag("words", tuple, (), "some words"),
    Flag("stop", tuple, (), "texts", repeats=True, split_commas=False),
    Flag("labels", tuple, None, "names", repeats=True),
    Flag("system", str, None, "a text", allow_empty=True),
    Flag("pack", str, "on", "how", choices=("on", "off")),
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
    rest = {"name": None, "words": (), "stop": (), "labels": None, "system": None, "pack": "on"}
    assert parsed.values == parsed.given | rest
    assert parse(["--no-fast"], None, FLAGS).flag("fast") is False


def test_values_keep_their_characters():
    parsed = parse(["--name", "a=b --c\n", "--words", "yes, no,"], None, FLAGS)
    assert parsed.flag("name") == "a=b --c\n"
    assert parsed.flag("words") == ("yes", "no")
    assert parse(["--name=--odd"], None, FLAGS).flag("name") == "--odd"


def test_a_repeated_option_is_taken_as_written():
    for typed in (",", " is ", "\\n", "\n", "-", "- a", "-x"):
        assert parse(["--stop", typed], None, FLAGS).flag("stop") == (typed,)
    assert parse(["--stop", "a,b", "--stop=--"], None, FLAGS).flag("stop") == ("a,b", "--")
    assert parse(["--labels", " a b , c"], None, FLAGS).flag("labels") == ("a b", "c")
    assert parse(["--labels", "a, b", "--labels", "c"], None, FLAGS).flag("labels") == ("a, b", "c")
    assert parse(["--system", ""], None, FLAGS).flag("system") == ""


def test_words_that_look_like_options_are_plain_after_two_dashes_or_with_a_space():
    assert parse(["--fast", "--", "--x"], "word", FLAGS).words == ("--x",)
    for typed in ("-", "- a list", "-5", "--- title"):
        assert parse([typed], "word", FLAGS).words == (typed,)
    with pytest.raises(ConfigError, match="unknown option -x"):
        parse(["-x"], "word", FLAGS)


def test_underscores_are_dashes_and_a_negative_number_is_a_value():
    flags = (Flag("held_out", str, None, "a file"), Flag("lr", float, None, "rate"))
    parsed = parse(["--held_out", "a_b", "--lr", "-2"], None, flags)
    assert parsed.given == {"held_out": "a_b", "lr": -2.0}


def test_fields_in_messages_are_spelled_as_options():
    flags = [Flag("lr_ratio", float, 1.0, ""), Flag("lr", float, None, "")]
    assert (
        with_option_names("lr_ratio: found 0; lr: found -1", flags)
        == "--lr-ratio: found 0; --lr: found -1"
    )
    assert with_option_names("the lr: x and lr ratio", flags) == "the lr: x and lr ratio"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stop", ""], "--stop: found an empty text, allowed a value"),
        (["--name="], "--name: found an empty text"),
        (["--pack", "of"], '--pack: found "of", allowed on, off; nearest: off'),
        (["--words", ","], '--words: found ",", allowed A,B'),
        (["--lr", "1", "--lr", "2"], "--lr is given twice"),
        (["--fast", "--no-fast"], "--fast and --no-fast contradict each other"),
        (["--words", "a", "b"], 'unexpected word "b" after --words: several are written A,B'),
        (["--name", "--odd"], "--name needs a value; --name=--odd takes this one"),
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
    ],
)
def test_what_is_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        parse(words, "word", FLAGS)


def test_words_may_be_numbers_or_pairs():
    ids = Flag("ids", tuple, (), "ids", element_types=(int,))
    ranks = Flag("ranks", tuple, (), "ranks", element_types=(str, float))
    parsed = parse(
        ["--ids", "3, 4", "--ranks", "q=2,blocks.0.mlp.out.down=1e1"], None, [ids, ranks]
    )
    assert parsed.flag("ids") == (3, 4)
    assert parsed.flag("ranks") == (("q", 2.0), ("blocks.0.mlp.out.down", 10.0))
    assert (ids.metavar, ranks.metavar) == ("A,B", "A=X,...")
    for words, message in (
        (["--ids", "a"], '--ids: found "a", allowed a whole number'),
        (["--ranks", "q"], '--ranks: found "q", allowed name=value'),
        (["--ranks", "q=x"], '--ranks: found "x", allowed a number'),
    ):
        with pytest.raises(ConfigError, match=message):
            parse(words, None, [ids, ranks])


def test_a_table_of_methods_stands_for_their_fields(monkeypatch):
    monkeypatch.setattr("minift.cli.options.resolve", lambda spec: {"fast": (Recipe, None)})
    flags = flags_of(["anything:METHODS"])
    assert [(f.name, f.method) for f in flags] == [(n, "fast") for n in ("lr", "steps", "words")]


def test_a_word_may_be_left_out_or_unwanted():
    assert parse([], "[word]", FLAGS).words == ()
    with pytest.raises(ConfigError, match="unexpected"):
        parse(["a"], None, FLAGS)


def test_a_missing_option_is_asked_for_by_its_name():
    with pytest.raises(ConfigError, match="--name is missing"):
        parse([], None, FLAGS).need("name")


def test_flags_of_a_dataclass_are_its_fields(monkeypatch):
    monkeypatch.setattr("minift.cli.options.resolve", lambda spec: Recipe)
    flags = flags_of(["anything:Recipe"])
    assert [(f.name, f.type, f.default, f.common) for f in flags] == [
        ("lr", float, 0.1, False),
        ("steps", int, None, False),
        ("words", tuple, ("a",), True),
    ]
    parsed = parse(["--steps", "7", "--words", "x,y"], None, flags)
    assert parsed.config(Recipe) == Recipe(0.1, 7, ("x", "y"))
