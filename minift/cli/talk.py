"""`minift generate` and `minift chat`: text out of a model."""

from __future__ import annotations

import codecs
import json
import sys
from string import Formatter
from typing import Any

from minift.cli.models import open_speaker, trained_texts
from minift.cli.options import Parsed
from minift.cli.screen import Screen, spoken
from minift.data.read import parse_template, unescape_template
from minift.errors import ConfigError, one_line
from minift.generation.decode import generate as continue_text
from minift.generation.decode_weights import obstacle
from minift.generation.sampling import Sampling
from minift.kernels.quantized.linear import base_of
from minift.model.transformer import Transformer
from minift.tokenizers.interface import Tokenizer


def speaker(parsed: Parsed) -> tuple[Transformer, Tokenizer]:
    """The model, and a word about a base in few bits that every token decodes."""
    model, tokenizer = open_speaker(parsed)
    reason = obstacle(model)
    if reason is not None:
        line = f"minift: base {base_of(model)} is decoded for every token: {reason}"
        print(line, file=sys.stderr)  # what is printed to stdout is the text
    return model, tokenizer


def writing(parsed: Parsed) -> dict[str, Any]:
    """How to write, as `generate` takes it. A flag that would have no say is refused."""
    sampling = parsed.config(Sampling)
    for name in ("top_k", "top_p", "sampling_seed"):
        if sampling.temperature == 0 and name in parsed.given:
            raise ConfigError(
                f"{name}: has no effect at temperature 0, which takes the best token every time; "
                "add --temperature 0.7"
            )
    return {
        "sampling": sampling,
        "max_new_tokens": parsed.flag("max_new_tokens"),
        "stop": [unescape_template(text) for text in parsed.flag("stop")],
        "threads": parsed.flag("threads"),
        "graph": parsed.flag("graph"),
    }


def strict_stdin() -> None:
    """Read standard input as UTF-8 where the locale knows ASCII alone; refuse other bytes."""
    if hasattr(sys.stdin, "reconfigure"):
        name = codecs.lookup(sys.stdin.encoding).name
        sys.stdin.reconfigure(errors="strict", encoding="utf-8" if name == "ascii" else name)


def stdin_text(whole: bool = False) -> str:
    """A line of standard input, or all of it."""
    try:
        text = sys.stdin.read() if whole else sys.stdin.readline()
        return text.removeprefix("\ufeff")  # the mark that some editors begin a file with
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"standard input: found bytes that are not {error.encoding}, allowed text"
        ) from None


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
    """The prompt in the template of --template, or of training, where that shows one column.

    One that has the template's form already stays as it is.
    """
    given = parsed.flag("template")
    template = trained_texts(parsed).template if given is None else unescape_template(given)
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


def generate(parsed: Parsed, screen: Screen) -> int:
    how = writing(parsed)
    prompt, messages = prompt_of(parsed), list[dict[str, str]]()
    if parsed.flag("chat") and parsed.flag("template") is not None:
        raise ConfigError("template: found with --chat, allowed without: a message has none")
    model, tokenizer = speaker(parsed)
    if not parsed.flag("chat"):
        prompt = by_template(parsed, prompt)
    elif (system := trained_texts(parsed).system) is not None:
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
        else lambda row, text: print(spoken(text), end="", flush=True),
        **how,
    )
    if as_json:
        found = {"text": texts[0]} if samples == 1 else {"texts": texts}
        screen.result("", {"prompt": prompt, **found})
    elif samples == 1:
        print()
    else:
        for number, text in enumerate(texts, 1):
            print(f"--- {number} of {samples}\n{spoken(text)}")
    return 0


def chat(parsed: Parsed, screen: Screen) -> int:
    """Turn by turn, until the end of the input. The oldest turns leave a full context.

    With --json each answer is a line, an object of prompt and answer, and nothing else is printed.
    """
    how, as_json = writing(parsed), parsed.flag("json")
    model, tokenizer = speaker(parsed)
    system: str | None = parsed.flag("system")
    trained = trained_texts(parsed).system
    if trained is not None and "system" not in parsed.given:
        system = trained
        line = f"the system's message of training: {one_line(trained, 120)} (--system '' for none)"
        print(f"minift: {line}", file=sys.stderr)
    messages = [] if system is None else [{"role": "system", "content": system}]
    opening = len(messages)
    shown = sys.stdin.isatty() and not as_json
    if shown:
        screen.say(f"{one_line(model.source, 200)} · Ctrl-D ends")
    strict_stdin()
    room = model.config.context - parsed.flag("max_new_tokens")
    if room < 1:
        raise ConfigError(f"--max-new-tokens leaves no room in a context of {model.config.context}")
    while True:
        try:
            if shown:
                print(screen.paint("you> ", "1"), end="", flush=True)
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
            stream=None if as_json else lambda row, text: print(spoken(text), end="", flush=True),
            **how,
        )[0]
        print(json.dumps({"prompt": line.strip(), "answer": answer}) if as_json else "", flush=True)
        if answer.strip():
            messages.append({"role": "assistant", "content": answer})
        else:  # no template has a turn without text: the question is forgotten
            messages.pop()
