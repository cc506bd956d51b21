"""`minift COMMAND ...`: parse the options, run the command, print every failure as one line.

The table of commands is static, so that help does not import torch. A command's own module is
imported when the command runs.
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
from minift.cli.commands import COMMANDS, check_together
from minift.cli.console import Console, columns, replace_unencodable_text, wrap_text
from minift.cli.help import command_help, overview
from minift.cli.options import Flag, Parsed, parse, with_option_names
from minift.cli.suggestions import suggest_command, suggest_option
from minift.errors import ConfigError, DataError, FormatError, Notice, StorageError, one_line
from minift.kernels.choice import using

ADAPTER = "adapter_config.json"
HELP = ("-h", "--help", "--help-all")
MEMORY = (
    "out of memory; less is needed with a smaller --batch-size or --max-length, with --base int8 "
    "or nf4, or by a smaller model"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; -> the exit code: 0 done, 2 wrong input, 3 diverged, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    replace_unencodable_text()
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
    """The line and the exit code of a failure; an empty line if it is a bug in minift."""
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
    """Print the notes of an error: training adds where its adapter was saved."""
    for note in getattr(error, "__notes__", ()):
        print(f"minift: {note}", file=sys.stderr)


def run(words: list[str]) -> int:
    if len(words) > 1 and words[0] in (*HELP, "help"):  # minift help sft
        words = [words[1], "--help-all" if words[0] == "--help-all" else "--help", *words[2:]]
    if not words or words[0] in (*HELP, "help"):
        print(wrap_text(overview(), columns()))
        return 0
    if words[0] in ("-V", "--version"):
        print(f"minift {__version__}")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        if words[0].startswith("-"):
            raise ConfigError(
                f"{one_line(words[0])} stands before a command (minift --help lists them)"
            )
        near = suggest_command(words[0], COMMANDS)
        raise ConfigError(
            f'unknown command "{one_line(words[0])}"{near} (minift --help lists them)'
        )
    rest = words[1:]
    flags = command.options
    typed = rest[: rest.index("--")] if "--" in rest else rest
    if {*HELP} & {*typed}:
        everything, width = "--help-all" in typed, columns()
        text = command_help(words[0], command, everything=everything, width=width)
        print(wrap_text(text, width))
        return 0
    parsed: Parsed = parse(rest, command.positional, flags, hint)
    check_together(command, parsed)
    check_is_model(parsed)
    console = Console(
        quiet=parsed.flag("quiet") or parsed.flag("json"), as_json=parsed.flag("json")
    )
    module = importlib.import_module(f"minift.cli.{words[0]}")
    if {"threads", "dtype"} & set(parsed.given):
        from minift.runtime import advice

        for line in advice(parsed.values.get("threads"), parsed.values.get("dtype")):
            print(f"minift: {line}", file=sys.stderr)
    try:
        with notices_shown(), using(parsed.values.get("kernels", "auto")):
            return int(getattr(module, words[0])(parsed, console) or 0)
    except ConfigError as error:
        raise ConfigError(with_option_names(str(error), flags)) from error


def check_is_model(parsed: Parsed) -> None:
    """Refuse a run or an adapter that is given as --model."""
    place = parsed.given.get("model")
    if place is None or os.path.exists(os.path.join(place, "config.json")):
        return
    if any(os.path.exists(os.path.join(place, file)) for file in ("run.json", ADAPTER)):
        takes = "--adapter takes it" if "adapter" in parsed.values else "minift merge makes one"
        raise ConfigError(f"--model: {place} is an adapter and no model; {takes}")


def hint(typed: str, known: Mapping[str, Flag]) -> str:
    """Suggest an option for an unknown one, or name the commands that have it."""
    name = "--" + typed.lstrip("-").replace("_", "-")
    others = [
        word
        for word, command in COMMANDS.items()
        if any(flag.option == name for flag in command.options)
    ]
    return suggest_option(typed, known, others)


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
