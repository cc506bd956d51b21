"""The table of commands: each row can be called, and its example can be typed."""

from __future__ import annotations

import importlib
import shlex

import pytest

from minift.cli.commands import CHAT_TEMPLATE, COMMANDS, Command, check_together
from minift.cli.options import Flag, parse
from minift.errors import ConfigError
from minift.tokenizers.chat import TEMPLATES


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_function(name):
    module = importlib.import_module(f"minift.cli.{name}")
    assert callable(getattr(module, name))


def test_the_help_names_every_chat_template():
    for name in TEMPLATES:
        assert name in CHAT_TEMPLATE.help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_parses(name):
    command = COMMANDS[name]
    for example in (command.example, *command.more_examples):
        program, typed, *rest = shlex.split(example.partition(" < ")[0])
        assert (program, typed) == ("minift", name)
        check_together(command, parse(rest, command.positional, command.options))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_rows_name_options_that_there_are(name):
    command = COMMANDS[name]
    known = {flag.name for flag in command.options}
    named = [word for need in command.required for word in need.split("|")]
    named += [*command.in_help, *(word for pair in command.exclusive for word in pair)]
    assert set(named) <= known


def test_what_is_missing_is_said_at_once_and_what_contradicts_is_refused():
    command = Command(
        "does", "minift m --a 1", required=("name", "lr|steps"), exclusive=(("lr", "steps"),)
    )
    flags = [Flag("name", str, None, ""), Flag("lr", float, None, ""), Flag("steps", int, None, "")]
    with pytest.raises(ConfigError, match=r"^WORD is missing; for example: minift m a$"):
        check_together(Command("does", "minift m a", positional="word"), parse([], "word", flags))
    expected = r"^--name and --lr \(or --steps\) are missing; for example: minift m --a 1$"
    with pytest.raises(ConfigError, match=expected):
        check_together(command, parse([], None, flags))
    with pytest.raises(ConfigError, match=r"^--lr and --steps are given, allowed one of the two$"):
        check_together(command, parse(["--name", "x", "--lr", "1", "--steps", "2"], None, flags))
    check_together(command, parse(["--name", "x", "--steps", "2"], None, flags))
