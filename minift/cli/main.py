"""`minift VERB ...`: the table of verbs, their options, and what every failure prints.

The table is static, so that help costs no import of torch. A verb's own module is imported when the
verb is called.
"""

from __future__ import annotations

import importlib
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from minift import __version__
from minift.cli.options import Flag, Parsed, of, parse, verb_help
from minift.cli.screen import Screen
from minift.cli.verbs import VERBS, Verb
from minift.errors import ConfigError, DataError, FormatError, Notice, StorageError
from minift.kernels.choice import using

COMMON = (
    Flag("quiet", bool, False, "print results only"),
    Flag("json", bool, False, "print the result as JSON"),
    Flag("debug", bool, False, "show the traceback of an error"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; -> the exit code: 0 done, 2 wrong input, 3 diverged, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        return run(words)
    except KeyboardInterrupt as interrupt:
        if debug:
            traceback.print_exc()
        print("minift: interrupted", file=sys.stderr)
        print_notes(interrupt)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        sys.stderr.close()
        return 0
    except (ConfigError, DataError, FormatError, StorageError) as error:
        if debug:
            traceback.print_exc()
        print(f"minift: {error}", file=sys.stderr)
        print_notes(error)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "Diverged":
            raise
        if debug:
            traceback.print_exc()
        print(f"minift: {error}", file=sys.stderr)
        print_notes(error)
        return 3


def print_notes(error: BaseException) -> None:
    """What training added to an error: where its adapter is."""
    for note in getattr(error, "__notes__", ()):
        print(f"minift: {note}", file=sys.stderr)


def run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"minift {__version__}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        import difflib

        near = difflib.get_close_matches(words[0], VERBS, 1)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ConfigError(f'unknown command "{words[0]}"{hint} (minift --help lists them)')
    rest = words[1:]
    flags = (*verb.flags, *of(verb.configs), *COMMON)
    if {"-h", "--help", "--help-all"} & set(rest):
        print(verb_help(words[0], verb, flags, everything="--help-all" in rest))
        return 0
    parsed: Parsed = parse(rest, verb.positional, flags)
    screen = Screen(quiet=parsed.flag("quiet") or parsed.flag("json"), as_json=parsed.flag("json"))
    module = importlib.import_module(f"minift.cli.{verb.module}")
    if {"threads", "dtype"} & set(parsed.given):
        from minift.runtime import advice

        for line in advice(parsed.values.get("threads"), parsed.values.get("dtype")):
            print(f"minift: {line}", file=sys.stderr)
    with notices_shown(), using(parsed.values.get("kernels", "auto")):
        return int(getattr(module, words[0])(parsed, screen) or 0)


@contextmanager
def notices_shown() -> Iterator[None]:
    """Print each notice once, as a line on stderr."""
    shown: set[str] = set()
    with warnings.catch_warnings():
        usual = warnings.showwarning
        warnings.simplefilter("always", Notice)

        def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
            if not issubclass(category, Notice):
                usual(message, category, *rest)  # type: ignore[arg-type]
            elif str(message) not in shown:
                shown.add(str(message))
                print(f"minift: {message}", file=sys.stderr)

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def overview() -> str:
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {name:<{width}}  {verb.does}" for name, verb in VERBS.items())
    return f"""\
minift {__version__}: fine-tune open language models, on a laptop too

usage: minift COMMAND [OPTIONS]        minift COMMAND --help

{rows}

start here:  minift quickstart"""


__all__ = ["Verb", "main"]
