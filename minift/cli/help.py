"""What `minift --help` and `minift COMMAND --help` print."""

from __future__ import annotations

from textwrap import wrap

from minift import __version__
from minift.cli.commands import COMMANDS, Command
from minift.cli.options import Flag

MANY = 12  # more options than fit a screen: --help shows the common ones


def overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return f"""\
minift {__version__}: fine-tune open language models, on a laptop too

usage: minift COMMAND [OPTIONS]        minift COMMAND --help

{rows}

start here:  minift quickstart"""


def command_help(name: str, command: Command, *, everything: bool, width: int = 100) -> str:
    """What the command does, its usual options (all of them with --help-all), an example."""
    flags = command.options
    shown = [
        f for f in flags if f.common or f.name in command.in_help or f.name in command.required
    ]
    if everything or not shown or len(flags) <= MANY:
        shown = list(flags)
    groups = list(dict.fromkeys(f.group for f in sorted(shown, key=lambda f: bool(f.method))))
    shown.sort(key=lambda flag: groups.index(flag.group))
    left = [f"{f.option} {f.metavar}".rstrip() for f in shown]
    column = min(max(map(len, left), default=0), width // 2) + 4
    lines, group = [], ""
    for spec, flag in zip(left, shown, strict=True):
        if flag.group != group and everything:
            lines.append(f"\n{flag.group}:")
        text = wrap(flag.help + _default(flag), max(20, width - column), break_on_hyphens=False)
        first = f"  {spec:<{column - 4}}  "
        if len(first) > column:  # a long option at a narrow width: its help stands under it
            lines.append(first.rstrip())
            first = " " * column
        lines.append((first + ("\n" + " " * column).join(text)).rstrip())
        group = flag.group
    if len(shown) < len(flags):
        lines.append(f"  --help-all lists {len(flags) - len(shown)} more")
    word = f" {command.positional.upper()}" if command.positional else ""
    example = "\n             ".join((command.example, *command.more_examples))
    return f"""\
minift {name}: {command.summary}

usage: minift {name}{word} [OPTIONS]

{chr(10).join(lines).lstrip(chr(10))}

example:     {example}"""


def _default(flag: Flag) -> str:
    if flag.default in (None, False, ()) or "default" in flag.help:
        return ""
    shown = ",".join(flag.default) if isinstance(flag.default, tuple) else flag.default
    return f" [{shown}]"
