"""`minift generate`: the text that follows a prompt."""

from __future__ import annotations

import sys
from string import Formatter

from minift.cli.console import Console, without_controls
from minift.cli.generation import generation_options, open_for_text, stdin_text, strict_stdin
from minift.cli.models import training_text_format
from minift.cli.options import Parsed
from minift.data.read import parse_template, unescape_template
from minift.errors import ConfigError, one_line
from minift.generation.decode import generate as continue_text


def generate(parsed: Parsed, console: Console) -> int:
    how = generation_options(parsed)
    prompt, messages = prompt_of(parsed), list[dict[str, str]]()
    if parsed.flag("chat") and parsed.flag("template") is not None:
        raise ConfigError("template: found with --chat, allowed without: a message has none")
    model, tokenizer = open_for_text(parsed)
    if not parsed.flag("chat"):
        prompt = by_template(parsed, prompt)
    elif (system := training_text_format(parsed).system) is not None:
        messages.append({"role": "system", "content": system})
    ids: str | list[int] = prompt
    if parsed.flag("chat"):
        ids = tokenizer.chat([*messages, {"role": "user", "content": prompt}], reply=True)[0]
    as_json, samples = parsed.flag("json"), parsed.flag("samples")
    texts = continue_text(
        model,
        tokenizer,
        [ids],
        samples=samples,
        stream=None
        if as_json or samples > 1
        else lambda row, text: print(without_controls(text), end="", flush=True),
        **how,
    )
    if as_json:
        found = {"text": texts[0]} if samples == 1 else {"texts": texts}
        console.result("", {"prompt": prompt, **found})
    elif samples == 1:
        print()
    else:
        for number, text in enumerate(texts, 1):
            print(f"--- {number} of {samples}\n{without_controls(text)}")
    return 0


def prompt_of(parsed: Parsed) -> str:
    r"""The prompt as typed, where `\n` is a new line; or, for `-`, standard input."""
    typed = parsed.words[0]
    if typed != "-":  # bytes that the locale does not know are UTF-8
        return unescape_template(
            typed.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        )
    strict_stdin()
    return stdin_text(whole=True).removesuffix("\n")


def by_template(parsed: Parsed, prompt: str) -> str:
    """Put the prompt into --template, or into the template of training if it has one column.

    A prompt that already has the form of the template of training stays as it is.
    """
    given = parsed.flag("template")
    template = training_text_format(parsed).template if given is None else unescape_template(given)
    if template is None:
        return prompt
    try:
        columns = {name for _, name, *_ in Formatter().parse(template) if name is not None}
    except ValueError as problem:
        raise ConfigError(f"template {one_line(template, 100)!r}: {problem}") from None
    if len(columns) != 1:
        if given is not None:
            raise ConfigError(f"template: found {one_line(given)}, allowed one column, as {{text}}")
        return prompt
    pieces = parse_template(template, [*columns])
    first, last = (text if name is None else "" for text, name in (pieces[0], pieces[-1]))
    if given is None and prompt.startswith(first) and prompt.endswith(last):
        return prompt
    if given is None:
        shown = one_line(template.replace("\n", "\\n"), 200)
        line = f"the prompt is made by the template of training, '{shown}'; --template '{{text}}'"
        print(f"minift: {line} takes it as it is", file=sys.stderr)
    return "".join(text if name is None else prompt for text, name in pieces)
