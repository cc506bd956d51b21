"""`minift eval`: how good a model is on a file."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minift.cli.models import open_model
from minift.cli.options import Parsed
from minift.cli.screen import Screen
from minift.cli.train import read
from minift.data.read import Records
from minift.data.split import Rows
from minift.errors import ConfigError
from minift.generate.decode import opened
from minift.model.transformer import Transformer
from minift.runtime import tuned
from minift.tokenizers.byte_bpe import ByteBPE
from minift.train.evaluate import Accuracy, held_out_loss, label_logprobs
from minift.train.objectives import SFT


def eval(parsed: Parsed, screen: Screen) -> int:
    records = read(parsed, parsed.need("data"))
    model, tokenizer = open_model(parsed)
    if records.labels:
        accuracy, _ = measure(model, tokenizer, records, screen, threads=parsed.flag("threads"))
        low, high = accuracy.interval
        data = {"accuracy": accuracy.share, "interval": [low, high], "rows": accuracy.total}
        screen.result(f"accuracy     {accuracy}   {accuracy.total:,} rows", data)
        return 0
    objective = SFT(tokenizer, records, records, max_length=parsed.flag("max_length"))
    with tuned(parsed.flag("threads")):
        loss = held_out_loss(model, objective, 4096)
    assert loss is not None
    perplexity = float(torch.tensor(loss).exp())
    text = f"loss         {loss:.4f} nats a token · perplexity {perplexity:.2f}"
    screen.result(text, {"loss": loss, "perplexity": perplexity, "rows": len(records)})
    return 0


def measure(
    model: Transformer,
    tokenizer: ByteBPE,
    records: Records | Rows,
    screen: Screen,
    *,
    threads: int | None = None,
    max_length: int = 1024,
) -> tuple[Accuracy, torch.Tensor]:
    """Accuracy over the label words, and their log-probabilities (N, C)."""
    labels, gold = records.labels, gold_of(records)
    assert labels is not None
    prompts, words = label_ids(tokenizer, records, labels, max_length)
    bar = screen.bar(len(prompts), "rows")
    try:
        with tuned(threads):
            scores = label_logprobs(model, prompts, words, progress=bar.advance)
    finally:
        bar.close()
    right = int((scores.argmax(1) == torch.tensor(gold)).sum())
    return Accuracy(right, len(gold)), scores


def gold_of(records: Records | Rows) -> list[int]:
    gold = []
    for i in range(len(records)):
        index = records.label_index(i)
        if index is None:
            raise ConfigError("eval: a row has no label; give --template, --target and --labels")
        gold.append(index)
    return gold


def label_ids(
    tokenizer: ByteBPE, records: Records | Rows, labels: Sequence[str], max_length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of every prompt (its end, where it is too long) and of every label word."""
    rows = [records[i] for i in range(len(records))]
    prompts = [opened(tokenizer, str(row["prompt"]))[-max_length:] for row in rows]
    spaced = str(rows[0]["completion"]).startswith(" ")
    words = [tokenizer.encode(" " + word if spaced else word) for word in labels]
    return prompts, words
