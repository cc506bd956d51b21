"""`minift generate` and `minift chat`: text out of a model."""

from __future__ import annotations

import sys

from minift.cli.models import open_speaker
from minift.cli.options import Parsed
from minift.cli.screen import Screen, spoken
from minift.errors import ConfigError, one_line
from minift.generation.decode import generate as continue_text
from minift.generation.prepared import obstacle
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


def generate(parsed: Parsed, screen: Screen) -> int:
    sampling = parsed.config(Sampling)
    model, tokenizer = speaker(parsed)
    prompt = parsed.words[0]
    ids: str | list[int] = prompt
    if parsed.flag("chat"):
        ids = tokenizer.chat([{"role": "user", "content": prompt}], reply=True)[0]
    as_json, samples = parsed.flag("json"), parsed.flag("samples")
    texts = continue_text(
        model,
        tokenizer,
        [ids],
        max_new_tokens=parsed.flag("max_new_tokens"),
        samples=samples,
        stop=parsed.flag("stop"),
        threads=parsed.flag("threads"),
        graph=parsed.flag("graph"),
        stream=None
        if as_json or samples > 1
        else lambda row, text: print(spoken(text), end="", flush=True),
        sampling=sampling,
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
    """Turn by turn, until an empty line's end of input. The oldest turns leave a full context."""
    sampling = parsed.config(Sampling)
    model, tokenizer = speaker(parsed)
    system = parsed.flag("system")
    messages = [{"role": "system", "content": system}] if system else []
    opening = len(messages)
    shown = sys.stdin.isatty()
    if shown:
        screen.say(f"{one_line(model.source, 200)} · Ctrl-D ends")
    room = model.config.context - parsed.flag("max_new_tokens")
    if room < 1:
        raise ConfigError(f"--max-new-tokens leaves no room in a context of {model.config.context}")
    while True:
        try:
            if shown:
                print(screen.paint("you> ", "1"), end="", flush=True)
            line = sys.stdin.readline()
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
        answer = continue_text(
            model,
            tokenizer,
            [ids],
            max_new_tokens=parsed.flag("max_new_tokens"),
            stop=parsed.flag("stop"),
            threads=parsed.flag("threads"),
            graph=parsed.flag("graph"),
            stream=lambda row, text: print(spoken(text), end="", flush=True),
            sampling=sampling,
        )[0]
        print()
        if answer.strip():
            messages.append({"role": "assistant", "content": answer})
        else:  # no template has a turn without text: the question is forgotten
            messages.pop()
