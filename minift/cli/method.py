"""`--method`: the method's config, from the options that are its fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from minift.cli.options import Parsed, option_name
from minift.errors import ConfigError
from minift.peft.methods import METHODS


def method_config(parsed: Parsed) -> Any | None:
    """The config of --method; None with --adapter, which brings its method and config.

    Options that would have no effect are refused, not ignored.
    """
    if parsed.flag("adapter") is not None:
        options = [option for option, _ in given_options(parsed)]
        options += ["--method"] if "method" in parsed.given else []
        if options:
            raise ConfigError(
                f"{options[0]} does not go with --adapter, which has a method of its own"
            )
        return None
    word = check_method(parsed.flag("method"), "--method")
    refuse_other_options(parsed, [word])
    return parsed.config(METHODS[word][0])


def check_method(word: str, where: str) -> str:
    if word not in METHODS:
        near = difflib.get_close_matches(word, METHODS, 1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ConfigError(f'{where}: found "{word}", allowed {", ".join(METHODS)}{hint}')
    return word


def refuse_other_options(parsed: Parsed, words: Sequence[str]) -> None:
    for option, owner in given_options(parsed):
        if owner not in words:
            raise ConfigError(
                f"{option} belongs to the method {owner}, and the method is {words[0]} "
                f"(minift explain {words[0]})"
            )


def given_options(parsed: Parsed) -> Iterator[tuple[str, str]]:
    """The options given that belong to a method, each with the method: (--rank, lora)."""
    for word, (kind, _) in METHODS.items():
        for item in fields(kind):
            if item.name in parsed.given:
                yield option_name(item.name), word
