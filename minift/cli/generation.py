"""What `generate` and `chat` share: the model, the options of sampling, standard input."""

from __future__ import annotations

import codecs
import sys
from typing import Any

from minift.cli.models import open_language_model
from minift.cli.options import Parsed
from minift.data.read import unescape_template
from minift.errors import ConfigError
from minift.generation.decode_weights import obstacle
from minift.generation.sampling import Sampling
from minift.kernels.quantized.linear import base_of
from minift.model.transformer import Transformer
from minift.tokenizers.interface import Tokenizer


def open_for_text(parsed: Parsed) -> tuple[Transformer, Tokenizer]:
    """Open the model; print a line if its quantized base is dequantized for every token."""
    model, tokenizer = open_language_model(parsed)
    reason = obstacle(model)
    if reason is not None:
        line = f"minift: base {base_of(model)} is decoded for every token: {reason}"
        print(line, file=sys.stderr)  # what is printed to stdout is the text
    return model, tokenizer


def generation_options(parsed: Parsed) -> dict[str, Any]:
    """The keyword arguments of `generate`. Options that would have no effect are refused."""
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
