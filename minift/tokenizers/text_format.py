"""How a run made its texts: what a model must see again to do what it was trained to do.

A chat template, the tokens that end an answer, the system's message, the template of prompts, the
names of labels and the longest row are decided in training. They are written beside the weights,
as minift.json in folders and as `minift.texts` in a GGUF file, and every command goes by them.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from minift.errors import FormatError, notice, one_line
from minift.tokenizers import chat
from minift.tokenizers.interface import Tokenizer

FILE, KEY = "minift.json", "minift.texts"
LISTS = ("ends", "labels")
SHORTEST = 2  # tokens of a row
LONGEST_TEXT = 262_144  # characters of any of them, as a chat template may have


@dataclass(frozen=True)
class TextFormat:
    """What was decided; None where there was nothing to decide."""

    chat_template: str | None = None  # Jinja
    ends: tuple[str, ...] = ()  # the special tokens that end an answer
    system: str | None = None  # the message that every conversation began with
    template: str | None = None  # of a prompt, made of columns
    target: str | None = None  # the column of the answer
    pair: str | None = None  # of a classifier's second text
    labels: tuple[str, ...] = ()
    max_length: int | None = None  # tokens

    def as_json(self) -> dict[str, Any]:
        """What there is."""
        rows = {key: list(v) if key in LISTS else v for key, v in asdict(self).items()}
        return {key: value for key, value in rows.items() if value not in (None, [])}

    def lines(self) -> list[str]:
        """What there is, for a person."""
        rows = {
            "chat template": self.chat_template, "answers end at": ", ".join(self.ends),
            "system": self.system, "prompts": self.template, "answers": self.target,
            "second text": self.pair, "labels": ", ".join(self.labels),
            "longest": self.max_length and f"{self.max_length:,} tokens",
        }  # fmt: skip
        return [f"{name}: {one_line(str(value), 60)}" for name, value in rows.items() if value]

    @staticmethod
    def from_json(data: object, path: str) -> TextFormat:
        """Raises FormatError for what is no such thing; anyone can write the file."""
        if type(data) is not dict:
            raise FormatError(path, "texts", data, "an object", "bad-type")
        known = {item.name for item in fields(TextFormat)}
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key not in known:
                continue  # of a later version
            texts = value if key in LISTS and type(value) is list else [value]
            if key == "max_length":
                if type(value) is not int or value < SHORTEST:
                    allowed = f"a whole number from {SHORTEST} on"
                    raise FormatError(path, f"texts.{key}", value, allowed, "bad-type")
            elif not all(type(t) is str and 0 < len(t) <= LONGEST_TEXT for t in texts) or (
                key in LISTS and type(value) is not list
            ):
                allowed = "a list of texts" if key in LISTS else "a text"
                raise FormatError(path, f"texts.{key}", value, allowed, "bad-type")
            values[key] = tuple(value) if key in LISTS else value
        return TextFormat(**values)

    def by(self, tokenizer: Tokenizer) -> TextFormat:
        """The same, with the chat template and the ends of answers of a tokenizer."""
        return replace(self, chat_template=chat.jinja(tokenizer), ends=end_names(tokenizer))


def end_names(tokenizer: Tokenizer) -> tuple[str, ...]:
    """The special tokens that end an answer, EOS first."""
    ids = sorted(chat.ends(tokenizer), key=lambda i: (i != tokenizer.eos, i))
    return tuple(tokenizer.token_bytes(i).decode(errors="replace") for i in ids)


def apply(tokenizer: Tokenizer, texts: TextFormat) -> None:
    """Let a tokenizer write and end texts as in training."""
    if texts.chat_template is not None:
        tokenizer.template, tokenizer.chat_template = texts.chat_template, None
    found = {tokenizer.special[name] for name in texts.ends if name in tokenizer.special}
    tokenizer.also_ends = tokenizer.also_ends | found


def as_trained(tokenizer: Tokenizer, texts: TextFormat, place: str) -> Tokenizer:
    """The tokenizer to write with a model: one that makes and ends texts as in training.

    That is `tokenizer` itself where it does so, and where its chat template was chosen by name;
    else a copy, with a notice about `place` where it would have used another template.
    """
    if tokenizer.chat_template is not None:
        return tokenizer
    own = copy.copy(tokenizer)
    apply(own, texts)
    if own.template != tokenizer.template:
        notice(place, "is written with the chat template of training, which the tokenizer has not: "
               "load_adapter(model, path, tokenizer=tokenizer) gives it")  # fmt: skip
    return own


def choose(tokenizer: Tokenizer, name: str | None) -> bool:
    """Take a named chat template in place of the one there is; -> whether it writes another.

    Raises ConfigError for a name that is not known.
    """
    if name is None:
        return False
    before = tokenizer.template
    own = None if before is None else chat.name_of(tokenizer)
    tokenizer.chat_template = name
    chat.source_of(tokenizer)
    return before is not None and own != name
