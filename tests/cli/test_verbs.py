"""The table of commands: each row can be called, and its example can be typed."""

from __future__ import annotations

import importlib
import shlex

import pytest

from minift.cli.main import COMMON
from minift.cli.options import check_together, of, parse
from minift.cli.verbs import CHAT_TEMPLATE, VERBS
from minift.tokenizers.chat import TEMPLATES


@pytest.mark.parametrize("name", VERBS)
def test_every_command_has_its_function(name):
    module = importlib.import_module(f"minift.cli.{VERBS[name].module}")
    assert callable(getattr(module, name))


def test_the_help_names_every_chat_template():
    for name in TEMPLATES:
        assert name in CHAT_TEMPLATE.help


@pytest.mark.parametrize("name", VERBS)
def test_every_example_parses(name):
    verb = VERBS[name]
    for example in (verb.example, *verb.more):
        program, typed, *rest = shlex.split(example.partition(" < ")[0])
        assert (program, typed) == ("minift", name)
        flags = (*verb.flags, *of(verb.configs), *COMMON)
        check_together(verb, parse(rest, verb.positional, flags))


@pytest.mark.parametrize("name", VERBS)
def test_the_rows_name_options_that_there_are(name):
    verb = VERBS[name]
    known = {flag.name for flag in (*verb.flags, *of(verb.configs))}
    named = [word for need in verb.needs for word in need.split("|")]
    named += [*verb.shown, *(word for pair in verb.apart for word in pair)]
    assert set(named) <= known
