"""`--method`: the config of the chosen method, from the flags of its fields."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from minift.cli.options import Parsed
from minift.errors import ConfigError
from minift.peft.methods import METHODS


def chosen(parsed: Parsed) -> Any | None:
    """The config of --method; None with --adapter, which has a method and fields of its own.

    A flag that has no say is refused, not ignored.
    """
    if parsed.flag("adapter") is not None:
        options = [option for option, _ in given_flags(parsed)]
        options += ["--method"] if "method" in parsed.given else []
        if options:
            raise ConfigError(
                f"{options[0]} does not go with --adapter, which has a method of its own"
            )
        return None
    word = known(parsed.flag("method"), "--method")
    refuse_others(parsed, [word])
    return parsed.config(METHODS[word][0])


def known(word: str, where: str) -> str:
    if word not in METHODS:
        near = difflib.get_close_matches(word, METHODS, 1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ConfigError(f'{where}: found "{word}", allowed {", ".join(METHODS)}{hint}')
    return word


def refuse_others(parsed: Parsed, words: Sequence[str]) -> None:
    for option, owner in given_flags(parsed):
        if owner not in words:
            raise ConfigError(
                f"{option} belongs to the method {owner}, and the method is {words[0]} "
                f"(minift explain {words[0]})"
            )


def given_flags(parsed: Parsed) -> Iterator[tuple[str, str]]:
    """What was typed of the methods' fields: (--rank, lora)."""
    for word, (kind, _) in METHODS.items():
        for item in fields(kind):
            if item.name in parsed.given:
                yield "--" + item.name.replace("_", "-"), word
