"""`minift eval`: how good a model is on a file."""

from __future__ import annotations

import math

from minift.cli.accuracy import accuracy_data, measure_answers, measure_classes
from minift.cli.console import Console, join_names
from minift.cli.datasets import open_labelled_texts, open_prompts
from minift.cli.models import (
    labels_of,
    open_model,
    training_text_format,
)
from minift.cli.options import Parsed
from minift.errors import ConfigError, one_line
from minift.model.transformer import Transformer
from minift.peft.adapters import room_left
from minift.runtime import tuned
from minift.tokenizers.text_format import TextFormat
from minift.train.evaluation.loss import held_out_loss
from minift.train.objectives.sft import SFT


def eval(parsed: Parsed, console: Console) -> int:
    labels = labels_of(parsed)
    if labels:
        return eval_classifier(parsed, console, labels)
    if parsed.flag("pair") is not None:
        raise ConfigError("--pair is for classifiers, which read two texts; this model is none")
    texts = training_text_format(parsed)
    records = open_prompts(parsed, parsed.need("data"), texts)
    model, tokenizer = open_model(parsed)
    most = longest_row(parsed, texts, room_left(model))
    if records.labels:
        accuracy, _ = measure_answers(parsed, console, model, tokenizer, records, most)
        text = f"accuracy     {accuracy}   {accuracy.total:,} rows"
        console.result(text, accuracy_data(accuracy))
        return 0
    objective = SFT(tokenizer, records, records, max_length=most)
    objective.check(model)
    for line in objective.cut_lines()[:1]:  # both sides are the same rows
        console.say(f"data         {line}")
    with tuned(parsed.flag("threads"), model.embed.weight.device):
        loss = held_out_loss(model, objective, 4096)
    assert loss is not None
    perplexity = math.exp(min(loss, 700.0))  # above, a float has no number for it
    text = f"loss         {loss:.4f} nats a token · perplexity {perplexity:.2f}"
    console.result(text, {"loss": loss, "perplexity": perplexity, "rows": len(records)})
    return 0


def longest_row(parsed: Parsed, texts: TextFormat, room: int) -> int | None:
    """The limit on a row in tokens: --max-length, else that of training; None: the default."""
    if "max_length" in parsed.given:
        found: int = parsed.flag("max_length")
        return found
    return None if texts.max_length is None else min(texts.max_length, room)


def eval_classifier(parsed: Parsed, console: Console, labels: tuple[str, ...]) -> int:
    """Score a classifier, which brings its labels and its template."""
    for name in ("documents", "chat_template"):
        if name in parsed.given:
            raise ConfigError(f"{name}: has no effect on a classifier, whose texts are rows")
    texts = training_text_format(parsed)
    records = open_labelled_texts(parsed, labels, texts, parsed.need("data"))
    model, tokenizer = open_model(parsed)
    most = longest_text(parsed, texts, model)
    shown = one_line(str(records.template))
    if records.pair is not None:
        shown += f" and {one_line(records.pair)}"
    console.say(f"texts        {shown}   labels {join_names(labels)}")
    accuracy = measure_classes(parsed, console, model, tokenizer, records, max_length=most)
    text = f"accuracy     {accuracy}   {accuracy.total:,} texts"
    console.result(text, accuracy_data(accuracy) | {"labels": labels})
    return 0


def longest_text(parsed: Parsed, texts: TextFormat, model: Transformer) -> int:
    """The limit on a text in tokens: --max-length, else that of training, else the context."""
    room = room_left(model)
    if "max_length" in parsed.given:
        most: int = parsed.flag("max_length")
        if most > room:
            raise ConfigError(f"--max-length: found {most}, allowed at most {room}, "
                              "the model's context")  # fmt: skip
        return most
    return min(texts.max_length or room, room)
