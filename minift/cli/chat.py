"""`minift chat`: talk with a model, turn by turn."""

from __future__ import annotations

import json
import sys

from minift.cli.console import Console, without_controls
from minift.cli.generation import generation_options, open_for_text, stdin_text, strict_stdin
from minift.cli.models import training_text_format
from minift.cli.options import Parsed
from minift.errors import ConfigError, one_line
from minift.generation.decode import generate as continue_text


def chat(parsed: Parsed, console: Console) -> int:
    """Turn by turn, until the end of the input. The oldest turns leave a full context.

    With --json each answer is a line, an object of prompt and answer, and nothing else is printed.
    """
    how, as_json = generation_options(parsed), parsed.flag("json")
    model, tokenizer = open_for_text(parsed)
    system: str | None = parsed.flag("system")
    trained = training_text_format(parsed).system
    if trained is not None and "system" not in parsed.given:
        system = trained
        line = f"the system's message of training: {one_line(trained, 120)} (--system '' for none)"
        print(f"minift: {line}", file=sys.stderr)
    messages = [] if system is None else [{"role": "system", "content": system}]
    opening = len(messages)
    shown = sys.stdin.isatty() and not as_json
    if shown:
        console.say(f"{one_line(model.source, 200)} · Ctrl-D ends")
    strict_stdin()
    room = model.config.context - parsed.flag("max_new_tokens")
    if room < 1:
        raise ConfigError(f"--max-new-tokens leaves no room in a context of {model.config.context}")
    while True:
        try:
            if shown:
                print(console.paint("you> ", "1"), end="", flush=True)
            line = stdin_text()
        except KeyboardInterrupt:
            line = ""
        if not line:
            if shown:
                print()
            return 0
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.strip()})
        ids = tokenizer.chat(messages, reply=True)[0]
        while len(ids) > room and len(messages) > opening + 1:
            del messages[opening : opening + 2]  # one question and its answer
            ids = tokenizer.chat(messages, reply=True)[0]
        if len(ids) > room:
            del messages[opening:]
            print(
                f"minift: this message is {len(ids):,} tokens, allowed {room:,}: the context less "
                "--max-new-tokens; it was not sent",
                file=sys.stderr,
            )
            continue
        answer = continue_text(
            model,
            tokenizer,
            [ids],
            stream=None
            if as_json
            else lambda row, text: print(without_controls(text), end="", flush=True),
            **how,
        )[0]
        print(json.dumps({"prompt": line.strip(), "answer": answer}) if as_json else "", flush=True)
        if answer.strip():
            messages.append({"role": "assistant", "content": answer})
        else:  # no template has a turn without text: the question is forgotten
            messages.pop()
