"""Accuracy with a progress bar, for every command that measures it."""

from __future__ import annotations

from torch import Tensor

from minift.cli.console import Console
from minift.cli.options import Parsed
from minift.data.read import Records
from minift.data.split import Rows
from minift.model.transformer import Transformer
from minift.tokenizers.interface import Tokenizer
from minift.train.evaluation.labels import Accuracy, class_accuracy, label_accuracy


def measure_answers(
    parsed: Parsed,
    console: Console,
    model: Transformer,
    tokenizer: Tokenizer,
    records: Records | Rows,
    max_length: int | None,
) -> tuple[Accuracy, Tensor]:
    """`label_accuracy` with a bar beside it."""
    bar = console.bar(len(records), "rows")
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


def measure_classes(
    parsed: Parsed,
    console: Console,
    model: Transformer,
    tokenizer: Tokenizer,
    rows: Records | Rows,
    *,
    max_length: int,
) -> Accuracy:
    """`class_accuracy` with a bar beside it."""
    bar = console.bar(len(rows), "texts")
    try:
        accuracy, _ = class_accuracy(
            model,
            tokenizer,
            rows,
            max_length=max_length,
            threads=parsed.flag("threads"),
            progress=bar.advance,
        )
        return accuracy
    finally:
        bar.close()


def accuracy_data(accuracy: Accuracy) -> dict[str, object]:
    interval = list(accuracy.interval)
    return {"accuracy": accuracy.share, "interval": interval, "rows": accuracy.total}
