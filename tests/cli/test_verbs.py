"""The table of commands: each row can be called, and its example can be typed."""

from __future__ import annotations

import importlib
import shlex

import pytest

from minift.cli.main import COMMON
from minift.cli.options import of, parse
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
    program, typed, *rest = shlex.split(verb.example)
    assert (program, typed) == ("minift", name)
    parse(rest, verb.positional, (*verb.flags, *of(verb.configs), *COMMON))
