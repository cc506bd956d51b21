"""`minift eval`: how good a model is on a file."""

from __future__ import annotations

import math

from torch import Tensor

from minift.cli.classify import score
from minift.cli.models import labels_of, open_model, trained_texts
from minift.cli.options import Parsed
from minift.cli.screen import Screen
from minift.cli.train import read
from minift.data.read import Records
from minift.data.split import Rows
from minift.errors import ConfigError
from minift.model.transformer import Transformer
from minift.peft.adapters import room_left
from minift.runtime import tuned
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.text_format import TextFormat
from minift.train.evaluation.labels import Accuracy, label_accuracy
from minift.train.evaluation.loss import held_out_loss
from minift.train.objectives.sft import SFT


def eval(parsed: Parsed, screen: Screen) -> int:
    labels = labels_of(parsed)
    if labels:
        return score(parsed, screen, labels)
    if parsed.flag("pair") is not None:
        raise ConfigError("--pair is for classifiers, which read two texts; this model is none")
    texts = trained_texts(parsed)
    records = read(parsed, parsed.need("data"), texts)
    model, tokenizer = open_model(parsed)
    most = longest(parsed, texts, room_left(model))
    if records.labels:
        accuracy, _ = measure(parsed, screen, model, tokenizer, records, most)
        low, high = accuracy.interval
        data = {"accuracy": accuracy.share, "interval": [low, high], "rows": accuracy.total}
        screen.result(f"accuracy     {accuracy}   {accuracy.total:,} rows", data)
        return 0
    objective = SFT(tokenizer, records, records, max_length=most)
    objective.check(model)
    for line in objective.cut_lines()[:1]:  # both sides are the same rows
        screen.say(f"data         {line}")
    with tuned(parsed.flag("threads"), model.embed.weight.device):
        loss = held_out_loss(model, objective, 4096)
    assert loss is not None
    perplexity = math.exp(min(loss, 700.0))  # above, a float has no number for it
    text = f"loss         {loss:.4f} nats a token · perplexity {perplexity:.2f}"
    screen.result(text, {"loss": loss, "perplexity": perplexity, "rows": len(records)})
    return 0


def longest(parsed: Parsed, texts: TextFormat, room: int) -> int | None:
    """Tokens of a row: as given, else as in training; None: the usual."""
    if "max_length" in parsed.given:
        found: int = parsed.flag("max_length")
        return found
    return None if texts.max_length is None else min(texts.max_length, room)


def measure(
    parsed: Parsed,
    screen: Screen,
    model: Transformer,
    tokenizer: Tokenizer,
    records: Records | Rows,
    max_length: int | None,
) -> tuple[Accuracy, Tensor]:
    """`label_accuracy` with a bar beside it."""
    bar = screen.bar(len(records), "rows")
    try:
        return label_accuracy(
            model,
            tokenizer,
            records,
            max_length=max_length,
            threads=parsed.flag("threads"),
            progress=bar.advance,
        )
    finally:
        bar.close()
