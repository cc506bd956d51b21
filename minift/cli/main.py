"""`minift VERB ...`: the table of verbs, their options, and what every failure prints.

The table is static, so that help costs no import of torch. A verb's own module is imported when the
verb is called.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from minift import __version__
from minift.cli.options import Flag, Parsed, as_typed, check_together, of, parse, verb_help
from minift.cli.screen import Screen, columns, fitted, show_any_text
from minift.cli.suggestions import command_like, option_like
from minift.cli.verbs import VERBS, Verb
from minift.errors import ConfigError, DataError, FormatError, Notice, StorageError, one_line
from minift.kernels.choice import using

COMMON = (
    Flag("quiet", bool, False, "print results only", group="every command"),
    Flag("json", bool, False, "print the result as JSON", group="every command"),
    Flag("debug", bool, False, "show the traceback of an error", group="every command"),
)
ADAPTER = "adapter_config.json"
HELP = ("-h", "--help", "--help-all")
MEMORY = (
    "out of memory; less is needed with a smaller --batch-size or --max-length, with --base int8 "
    "or nf4, or by a smaller model"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; -> the exit code: 0 done, 2 wrong input, 3 diverged, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_any_text()
    try:
        code = run(words)
        sys.stdout.flush()  # a reader that went away is found here, not at the end of Python
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, Exception) as error:
        line, code = line_and_code(error)
        if not line:
            raise  # a bug, which is not hidden
        if "--debug" in words:
            traceback.print_exc()
        print(f"minift: {line}", file=sys.stderr)
        print_notes(error)
        return code


def line_and_code(error: BaseException) -> tuple[str, int]:
    """The line and the exit code of a failure; no line for what is a bug of ours."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, ConfigError | DataError | FormatError | StorageError):
        return str(error), 2
    if type(error).__name__ == "Diverged":
        return str(error), 3
    no_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and no_memory):
        return MEMORY, 2
    if isinstance(error, OSError) and error.filename is not None:  # no permission, a folder, ...
        return f"{one_line(str(error.filename), 200)}: {error.strerror}", 2
    return "", 1


def print_notes(error: BaseException) -> None:
    """What training added to an error: where its adapter is."""
    for note in getattr(error, "__notes__", ()):
        print(f"minift: {note}", file=sys.stderr)


def run(words: list[str]) -> int:
    if len(words) > 1 and words[0] in (*HELP, "help"):  # minift help sft
        words = [words[1], "--help-all" if words[0] == "--help-all" else "--help", *words[2:]]
    if not words or words[0] in (*HELP, "help"):
        print(fitted(overview(), columns()))
        return 0
    if words[0] in ("-V", "--version"):
        print(f"minift {__version__}")
        return 0
    verb = VERBS.get(words[0])
    if verb is None:
        if words[0].startswith("-"):
            raise ConfigError(
                f"{one_line(words[0])} stands before a command (minift --help lists them)"
            )
        near = command_like(words[0], VERBS)
        raise ConfigError(
            f'unknown command "{one_line(words[0])}"{near} (minift --help lists them)'
        )
    rest = words[1:]
    flags = (*verb.flags, *of(verb.configs), *COMMON)
    asked = rest[: rest.index("--")] if "--" in rest else rest
    if {*HELP} & {*asked}:
        everything, width = "--help-all" in asked, columns()
        text = verb_help(words[0], verb, flags, everything=everything, width=width)
        print(fitted(text, width))
        return 0
    parsed: Parsed = parse(rest, verb.positional, flags, hint)
    check_together(verb, parsed)
    check_is_model(parsed)
    screen = Screen(quiet=parsed.flag("quiet") or parsed.flag("json"), as_json=parsed.flag("json"))
    module = importlib.import_module(f"minift.cli.{verb.module}")
    if {"threads", "dtype"} & set(parsed.given):
        from minift.runtime import advice

        for line in advice(parsed.values.get("threads"), parsed.values.get("dtype")):
            print(f"minift: {line}", file=sys.stderr)
    try:
        with notices_shown(), using(parsed.values.get("kernels", "auto")):
            return int(getattr(module, words[0])(parsed, screen) or 0)
    except ConfigError as error:
        raise ConfigError(as_typed(str(error), flags)) from error


def check_is_model(parsed: Parsed) -> None:
    """Refuse a run or an adapter where a model is wanted."""
    place = parsed.given.get("model")
    if place is None or os.path.exists(os.path.join(place, "config.json")):
        return
    if any(os.path.exists(os.path.join(place, file)) for file in ("run.json", ADAPTER)):
        takes = "--adapter takes it" if "adapter" in parsed.values else "minift merge makes one"
        raise ConfigError(f"--model: {place} is an adapter and no model; {takes}")


def hint(typed: str, known: Mapping[str, Flag]) -> str:
    """Which option may be meant: of this command, or of others."""
    name = "--" + typed.lstrip("-").replace("_", "-")
    others = [
        word
        for word, verb in VERBS.items()
        if any(flag.option == name for flag in (*verb.flags, *of(verb.configs)))
    ]
    return option_like(typed, known, others)


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
