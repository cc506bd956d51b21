"""What a row becomes: checked, and in one of three shapes, whatever file or list it comes from.

    template and target     {"prompt", "completion"}, and "pair" where there is a second text
    prompt, completion      {"prompt", "completion"}
    messages, conversations {"messages": [...]}
    text                    {"text"}

The fields of the first row decide for all of a file.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from string import Formatter
from typing import Any

from minift.data.conversations import conversation_field, messages_of
from minift.data.labels import allowed_labels, checked_labels, label_index
from minift.data.rows import Number, Problem, Row, shown
from minift.errors import ConfigError, one_line

Record = dict[str, Any]  # one of the three shapes
Pieces = list[tuple[str, str | None]]

PAIR = "text_pair"  # beside a template that is the field "text" alone, its second text
NAMED = 100  # columns that an error compares with or lists; a file may have a million
# Columns that hold an answer, in the order in which one of them is suggested as the target.
ANSWERS = ("label", "labels", "stars", "rating", "sentiment", "class", "category", "output",
           "answer", "response", "completion", "summary", "target", "score")  # fmt: skip
QUESTIONS = ("instruction", "question", "prompt", "query", "text", "sentence", "review", "content")


class Shape:
    """The options, settled by the first row, and what they make of each row."""

    kind: str

    def __init__(
        self,
        template: str | None = None,
        target: str | None = None,
        labels: Sequence[str] | None = None,
        pair: str | None = None,
        *,
        is_mixed: bool = False,
    ):
        self.is_mixed = is_mixed  # rows from Python: each tells its own kind
        self.given_pair = pair
        self.labels = None if labels is None else checked_labels(labels)
        self.template, self.target, self.pair = template, target, pair
        self.conversation = ""  # the field that has it

    def settle(self, first: Row) -> None:
        """Fix the kind by the first row, and check the options against its fields."""
        if self.template is not None or self.target is not None:
            if self.template is None or self.target is None:
                raise ConfigError("template and target go together: the prompt and the answer")
            has_pair = self.template == "{text}" and first.get(PAIR) is not None
            self.pair = self.given_pair or (f"{{{PAIR}}}" if has_pair else None)
            self._fills = [
                parse_template(template, list(first))
                for template in (self.template, self.pair)
                if template is not None
            ]
            if any(name == self.target for fill in self._fills for _, name in fill):
                target = one_line(self.target)
                raise ConfigError(f'the template shows the target "{target}" in the prompt')
            known_column("target", self.target, list(first))
            self.kind = "prompt"
            return
        if self.pair is not None:
            raise ConfigError("pair is the template of a second text, and needs one of the first")
        conversation = conversation_field(first)
        if conversation is not None:
            self.kind, self.conversation = "messages", conversation
        elif "prompt" in first and "completion" in first:
            self.kind = "prompt"
        elif "text" in first:
            self.kind = "text"
        else:
            raise _no_kind(first)
        if self.labels is not None:
            if self.kind != "prompt":
                raise ConfigError(f"labels need a target; the data has {self.kind} rows")
            self.target = "completion"

    def unread_answer(self, first: Row) -> str | None:
        """The column of a text's label, which is not read because no template asks for it."""
        if self.kind != "text":
            return None
        return next((name for name in first if name.lower() in ANSWERS), None)

    def record(self, row: Row) -> Record:
        if self.is_mixed:
            self.settle(row)
        if self.template is not None:
            prompt, *pair = (_filled(row, fill) for fill in self._fills)
            record = {"prompt": prompt, "completion": self._answer(row, prompt)}
            if pair:
                record["pair"] = pair[0]
            elif row.get(PAIR) is not None and self.template == "{text}":
                raise Problem(PAIR, shown(row[PAIR]), "no such field, as in the first row")
            return record
        if self.kind == "prompt":
            prompt = _text(row, "prompt")
            if self.labels is not None:
                return {"prompt": prompt, "completion": self._answer(row, prompt)}
            return {"prompt": prompt, "completion": _text(row, "completion")}
        if self.kind == "messages":
            return {"messages": messages_of(row, self.conversation)}
        return {"text": _text(row, "text")}

    def label_index(self, row: Row) -> int:
        """Which of the labels a row has."""
        assert self.target is not None
        assert self.labels is not None
        found = label_index(_cell(row, self.target), self.labels)
        if found is None:
            value = f"{shown(row[self.target])}, which is not in --labels"
            raise Problem(self.target, value, allowed_labels(self.labels))
        return found

    def _answer(self, row: Row, prompt: str) -> str:
        assert self.target is not None
        if self.labels is None:
            answer = _cell(row, self.target)
            if not answer or answer.isspace():
                raise Problem(self.target, "an empty text", "an answer")
        else:
            answer = self.labels[self.label_index(row)]
        return answer if prompt[-1:].isspace() or answer[0].isspace() else " " + answer


def parse_template(template: str, columns: Sequence[str]) -> Pieces:
    """The pieces of a template: (text, None) or ("", column). `{{` and `}}` are literal braces.

    >>> parse_template("{{x}} {text}:", ["text"])
    [('{x} ', None), ('', 'text'), (':', None)]
    """
    pieces: Pieces = []
    try:
        # Only parsed, never formatted: a name is looked up whole, so "a.b" reads no attribute.
        for text, name, form, conversion in Formatter().parse(template):
            if text and pieces and pieces[-1][1] is None:
                text = pieces.pop()[0] + text  # the parser ends a piece at each literal brace
            if text:
                pieces.append((text, None))
            if name is None:
                continue
            if form or conversion:
                raise ConfigError(f"template field {{{name}}} has a format; allowed: {{{name}}}")
            known_column("template field", name, columns)
            pieces.append(("", name))
    except ValueError as problem:
        if isinstance(problem, ConfigError):
            raise
        raise ConfigError(f"template {template!r}: {problem}") from None
    if all(name is None for _, name in pieces):
        hint = one_line(", ".join(columns[:NAMED]), 300)
        raise ConfigError(f"template {template!r} names no column; columns: {hint}")
    return pieces


def known_column(what: str, name: str, columns: Sequence[str]) -> None:
    if name in columns:
        return
    some = columns[:NAMED]
    near = difflib.get_close_matches(name, some, n=1, cutoff=0.5)
    if near:
        raise ConfigError(f'{what} "{name}" is no column; nearest: {one_line(near[0])}')
    yours = one_line(", ".join(some), 300)
    raise ConfigError(f"no column {name or 'without a name'}; yours: {yours}{suggestion(some)}")


def suggestion(columns: Sequence[str]) -> str:
    """The flags that would read a table with such columns; empty where none can be thought of."""
    named = [name for name in columns[:NAMED] if name.isprintable() and len(name) <= 40]
    answers = [name for word in ANSWERS for name in named if name.lower() == word]
    target = answers[0] if answers else (named[-1] if 2 <= len(named) <= 3 else None)
    others = [name for name in named if name not in ("id", "index", target)]
    if target is None or not others:
        return ""
    questions = [name for word in QUESTIONS for name in others if name.lower() == word]
    template = f"{{{(questions or others)[0]}}}"
    if "input" in others and "instruction" in others:  # Alpaca
        template = "{instruction}\\n{input}"
    return f"; try --template '{template}' --target {target}"


# ---- one row -------------------------------------------------------------------------------------


def _no_kind(first: Row) -> Problem:
    # Half of a prompt and completion pair is more likely a slip than another kind.
    for name, other in (("prompt", "completion"), ("completion", "prompt")):
        if name in first and not {*first} & {*ANSWERS, *QUESTIONS} - {name}:
            return _missing(other)
    found = f"fields {', '.join(list(first)[:NAMED])}" if first else "no fields"
    allowed = "prompt and completion, messages, conversations or text"
    return Problem(None, found, allowed + suggestion(list(first)))


def _missing(field: str) -> Problem:
    return Problem(field, "no such field", "text, in every row")


def _text(row: Row, field: str) -> str:
    text = row.get(field)
    if type(text) is not str:
        raise Problem(field, shown(text), "text") if field in row else _missing(field)
    if not text or text.isspace():
        raise Problem(field, "an empty text", "text")
    return text


def _filled(row: Row, fill: Pieces) -> str:
    """A template with the fields of a row."""
    fields = {name: _cell(row, name) for _, name in fill if name is not None}
    if not any(text.strip() for text in fields.values()):
        raise Problem(next(iter(fields)), "an empty text", "text")
    return "".join(text if name is None else fields[name] for text, name in fill)


def _cell(row: Row, field: str) -> str:
    """A field as a template shows it: text or a number; it may be empty."""
    value = row.get(field)
    if type(value) is str:
        return value
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return str(value)
    if type(value) is Number and value.is_integer:
        return str(value)
    if type(value) is float or type(value) is Number:
        raise Problem(field, shown(value), "text or a finite number")
    raise Problem(field, shown(value), "text") if field in row else _missing(field)
