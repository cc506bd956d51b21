"""How often the right label scores highest: by label words, or by a head on the model.

A label word is scored as the text that would follow the prompt: log p(label | prompt), summed over
the label's tokens. Where every label is one token, one pass over the prompts scores all of them. A
model `with_labels` has a head that scores every label at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minift.data.read import Records
from minift.data.split import Rows
from minift.errors import ConfigError, EncodeError
from minift.model.transformer import Transformer
from minift.peft.adapters import room_left
from minift.runtime import tuned
from minift.tokenizers.bos import bos_ids, encode_with_bos
from minift.tokenizers.interface import Tokenizer
from minift.train.checks import Data, check_room, spelled
from minift.train.objectives.batch import pad, windows
from minift.train.objectives.classification import (
    Classification,
    label_batches,
    scores_of,
    texts_and_label,
)
from minift.train.objectives.sft import LONGEST

ROWS, TOKENS = 64, 1024  # at once: more would leave the cache, fewer slow the products
CLASS_TOKENS = 4096  # of a batch of texts that are classified


def label_accuracy(
    model: Transformer,
    tokenizer: Tokenizer,
    records: Records | Rows,
    *,
    max_length: int | None = None,
    threads: int | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> tuple[Accuracy, Tensor]:
    """How often the likeliest label word is the right one, and log p of every label (N, C).

    `records` come from `open_records` with a template, a target and labels. A prompt that is, with
    a label, over `max_length` tokens loses its beginning, but for BOS; that is 1024, or what the
    model has room for if it is less. Raises ConfigError where a row has no label.
    """
    gold = gold_of(records)
    most = check_room(max_length or LONGEST, model, by_default=max_length is None)
    prompts, words = label_ids(tokenizer, records, most)
    with tuned(threads, model.embed.weight.device):
        scores = label_logprobs(model, prompts, words, progress)
    right = int((scores.argmax(1) == torch.tensor(gold)).sum())
    return Accuracy(right, len(gold)), scores


def class_accuracy(
    model: Transformer,
    tokenizer: Tokenizer,
    data: Data,
    *,
    max_length: int | None = None,
    threads: int | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> tuple[Accuracy, Tensor]:
    """How often the highest score is that of the right label, and log p of every label (N, C).

    `max_length`: tokens of a text, by default as many as the model has positions for.
    """
    labels = model.config.labels
    if model.config.head != "label":
        raise ConfigError(
            f"class_accuracy: {model.source} has no labels; with_labels gives it some"
        )
    there = data.labels if isinstance(data, Records | Rows) else None
    if there is not None and there != labels:
        raise ConfigError(f"labels: found {', '.join(there)}, allowed the model's own, "
                          f"{', '.join(labels)}")  # fmt: skip
    most = room_left(model) if max_length is None else max_length
    objective = Classification(tokenizer, data, labels=labels, max_length=most)
    with tuned(threads, model.embed.weight.device):
        logp = class_logprobs(model, objective, progress)
    gold = torch.tensor([texts_and_label(objective.train, i)[2] for i in range(len(logp))])
    return Accuracy(int((logp.argmax(1) == gold).sum()), len(gold)), logp


@torch.no_grad()
def class_logprobs(
    model: Transformer, objective: Classification, progress: Callable[[int], object]
) -> Tensor:
    """log p(label | text) of the objective's training rows: float32 (N, C)."""
    out = torch.empty(objective.rows, len(objective.labels))
    was = model.training
    model.eval()
    try:
        for some in windows(objective.rows):
            rows = [objective.encode(i) for i in some]
            for numbers, batch in label_batches(rows, CLASS_TOKENS):
                scores = scores_of(model, batch).float()  # (B, C)
                out[[some[k] for k in numbers]] = scores.log_softmax(-1).cpu()
                progress(batch.num_targets)
    finally:
        model.train(was)
    return out


def gold_of(records: Records | Rows) -> list[int]:
    """The index of every row's label."""
    gold = []
    for i in range(len(records)):
        index = records.label_index(i)
        if index is None:
            raise ConfigError("eval: a row has no label; give --template, --target and --labels")
        gold.append(index)
    return gold


def label_ids(
    tokenizer: Tokenizer, records: Records | Rows, max_length: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of every prompt (BOS and its end, where it is too long) and of every label word."""
    rows = [records[i] for i in range(len(records))]
    prompts = []
    for i, row in enumerate(rows):
        try:
            prompts.append(encode_with_bos(tokenizer, str(row["prompt"])))
        except EncodeError as error:
            allowed = "text that the vocabulary spells"
            raise records.error(i, None, spelled(error), allowed) from None
    spaced = str(rows[0]["completion"]).startswith(" ")
    labels = records.labels or ()
    last = next((prompt[-1] for prompt in prompts if prompt), None)
    words = [tokenizer.encode(" " + word if spaced else word, after=last) for word in labels]
    longest = max(map(len, words), default=0)
    opening = len(bos_ids(tokenizer))
    room = max_length - longest - opening
    if room < 1:
        raise ConfigError(f"max_length: found {max_length}, allowed {max_length - room + 1} or "
                          "more: a label and a token before it")  # fmt: skip
    for i, prompt in enumerate(prompts):
        if len(prompt) > opening + room:
            prompts[i] = prompt[:opening] + prompt[-room:]
    return prompts, words


@torch.no_grad()
def label_logprobs(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    progress: Callable[[int], object] = lambda rows: None,
) -> Tensor:
    """log p(label | prompt): ids of N prompts and C labels -> float32 (N, C)."""
    if not labels or not all(labels):
        raise ConfigError("labels: each needs at least one token")
    if not all(prompts):
        raise ConfigError("prompts: each needs at least one token")
    was = model.training
    model.eval()
    try:
        if all(len(label) == 1 for label in labels):
            rows = [list(prompt) for prompt in prompts]
            wanted = torch.tensor([label[0] for label in labels])
            return last_logprobs(model, rows, wanted, progress)
        columns = []
        for label in labels:
            rows = [[*prompt, *label] for prompt in prompts]
            columns.append(tail_logprobs(model, rows, len(label), progress))
        return torch.stack(columns, dim=1)
    finally:
        model.train(was)


def last_logprobs(
    model: Transformer,
    rows: list[list[int]],
    wanted: Tensor,
    progress: Callable[[int], object],
) -> Tensor:
    """Log-probabilities of the tokens `wanted` (C,) after each row -> (N, C)."""
    out, device = torch.empty(len(rows), len(wanted)), model.embed.weight.device
    for indices, tokens in padded(rows):
        last = torch.tensor([len(rows[i]) - 1 for i in indices])
        at = torch.arange(tokens.shape[1]) == last[:, None]
        logits = model(tokens.to(device), selected=at.to(device)).float()  # (B, V)
        out[indices] = logits.log_softmax(-1)[:, wanted.to(device)].cpu()
        progress(len(indices))
    return out


def tail_logprobs(
    model: Transformer, rows: list[list[int]], length: int, progress: Callable[[int], object]
) -> Tensor:
    """Summed log-probability of the last `length` tokens of each row -> (N,)."""
    out, device = torch.empty(len(rows)), model.embed.weight.device
    for indices, tokens in padded(rows):
        stop = torch.tensor([len(rows[i]) for i in indices])[:, None]
        place = torch.arange(tokens.shape[1])
        at = (place >= stop - length - 1) & (place < stop - 1)
        targets = torch.tensor([rows[i][-length:] for i in indices])[..., None]  # (B, length, 1)
        logits = model(tokens.to(device), selected=at.to(device)).float()  # (B length, V)
        logp = logits.view(len(indices), length, -1).log_softmax(-1)
        out[indices] = logp.gather(2, targets.to(device)).sum((1, 2)).cpu()
        progress(len(indices))
    return out


def padded(rows: list[list[int]]) -> list[tuple[list[int], Tensor]]:
    """Rows of like length side by side, padded on the right: [(indices, tokens (B, T))]."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    batches: list[list[int]] = []
    for i in order:
        full = not batches or len(batches[-1]) == ROWS
        if full or (len(batches[-1]) + 1) * len(rows[i]) > TOKENS:
            batches.append([])
        batches[-1].append(i)
    return [(indices, pad([rows[i] for i in indices])) for indices in batches]


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers with its 95 % interval."""

    right: int
    total: int

    @property
    def share(self) -> float:
        return self.right / max(1, self.total)

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.share:.1f} %  ({100 * low:.1f} to {100 * high:.1f})"


def wilson(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share. Wilson 1927, J. Amer. Statist. Assoc. 22."""
    if total == 0:
        return 0.0, 1.0
    p, scale = right / total, 1 + z * z / total
    middle = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
