"""Objectives: each owns its data, how rows become tensors, its loss sum and its metrics.

`fit` asks an objective for rows by index, sums its losses over a whole optimizer step and divides
once by the number of target tokens. Supervised fine-tuning is here, classification.py beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from minift.data.batches import micro_batches, packed_batches
from minift.data.read import Records, open_records
from minift.data.split import Rows
from minift.errors import ConfigError, EncodeError
from minift.model.transformer import Transformer
from minift.tokenizers.interface import Tokenizer

Rowset = Sequence[Mapping[str, object]] | Records | Rows
WINDOW = 512  # held-out rows tokenized at a time
PACK = ("auto", "on", "off")
GRAIN = 32  # tokens: a packed batch has a multiple of them
FILL = 0.9  # "auto" packs where less of the padded tensors than this would be text


@dataclass(frozen=True)
class Batch:
    """Rows side by side, padded on the right; or packed, behind each other in one row."""

    tokens: Tensor  # (B, T) what the model reads
    targets: Tensor  # (B, T) what should follow each position
    learned: Tensor  # (B, T) True where the prediction counts
    real: int  # tokens that are no padding
    segments: Tensor | None = None  # (1, T) of a packed batch: which of its rows each token is of

    @property
    def count(self) -> int:
        """Target tokens."""
        return int(self.learned.sum())


class Counted(Protocol):
    """What `fit` asks of a batch; the rest is between an objective's own methods."""

    @property
    def count(self) -> int:
        """What the loss is a mean over: target tokens, or rows."""

    @property
    def real(self) -> int:
        """Tokens that are no padding."""


class Objective(Protocol):
    """What `fit` needs."""

    @property
    def rows(self) -> int:
        """Rows to train on."""

    @property
    def packs(self) -> bool:
        """Whether rows of unlike length may stand behind each other, without padding."""

    def lengths(self, indices: Sequence[int]) -> Sequence[int]:
        """Tokens of these rows; asked once for every window of rows, before its batches."""

    def batches(self, indices: Sequence[int], max_tokens: int) -> Sequence[Counted]: ...

    def held_out_batches(self, max_tokens: int) -> Iterator[Counted]: ...

    def loss_sum(self, model: Transformer, batch: Any) -> Tensor: ...

    def example(self) -> tuple[list[int], list[int]]:
        """Ids of the first row, and a mask: 1 where a token is learned."""

    def summary(self) -> dict[str, object]: ...


class SFT:
    """Supervised fine-tuning: predict the answers, given what stands before them.

    A row is {"prompt", "completion"}, {"messages": [...]} or {"text"}; of the first only the
    completion and the end token are learned, of a conversation what the assistant says, of a text
    everything. `train` and `held_out` are paths or sequences of such rows. Prompt and completion
    are tokenized apart, so that no token straddles the border. A row over `max_length` loses its
    beginning, never its last answer; an answer (or a text) longer than that loses its end.

    `pack`: "on" puts the rows of a batch behind each other in one row without padding, each blind
    to the others; "off" pads them; "auto" packs where padding would cost more than packing does.
    The loss is the same.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        train: str | os.PathLike[str] | Rowset,
        held_out: str | os.PathLike[str] | Rowset | None = None,
        *,
        max_length: int = 1024,
        pack: str = "auto",
    ):
        if max_length < 2:
            raise ConfigError(f"max_length: found {max_length}, allowed 2 or more")
        if pack not in PACK:
            raise ConfigError(f"pack: found {pack}, allowed {', '.join(PACK)}")
        self.tokenizer, self.max_length, self.pack = tokenizer, max_length, pack
        self.train = rows_of(train)
        self.held_out: Rowset = rows_of(held_out) if held_out is not None else ()
        if not len(self.train):
            raise ConfigError("train: found no rows, allowed one or more")
        self.truncated: set[tuple[bool, int]] = set()
        self.window: dict[int, tuple[list[int], list[int]]] = {}  # rows whose ids are at hand

    @property
    def rows(self) -> int:
        return len(self.train)

    @property
    def packs(self) -> bool:
        return self.pack != "off"

    def lengths(self, indices: Sequence[int]) -> list[int]:
        self.window = {i: self.encode(i) for i in indices}
        return [len(ids) for ids, _ in self.window.values()]

    def encode(self, i: int, held_out: bool = False) -> tuple[list[int], list[int]]:
        """(ids, mask) of one row; mask is 1 on the tokens to be learned, the end token included."""
        rows = self.held_out if held_out else self.train
        row = rows[i]
        try:
            ids, mask = encode_row(self.tokenizer, row)
        except EncodeError as error:
            if isinstance(rows, Records | Rows):
                raise rows.error(i, None, str(error), "text that the vocabulary spells") from None
            raise ConfigError(f"row {i + 1}: {error}") from None
        if len(ids) > self.max_length:
            self.truncated.add((held_out, i))
            ids, mask = fit_length(ids, mask, self.max_length)
        return ids, mask

    def encoded(self, indices: Sequence[int]) -> list[tuple[list[int], list[int]]]:
        """(ids, mask) of these rows of the training data."""
        return [self.window[i] if i in self.window else self.encode(i) for i in indices]

    def batches(self, indices: Sequence[int], max_tokens: int) -> list[Batch]:
        """These rows of the training data, in pieces of at most `max_tokens` with padding."""
        return pieces(self.encoded(indices), max_tokens, self.pack)

    def held_out_batches(self, max_tokens: int) -> Iterator[Batch]:
        order = sorted(range(len(self.held_out)), key=lambda i: size(self.held_out[i]))
        for k in range(0, len(order), WINDOW):
            rows = [self.encode(i, True) for i in order[k : k + WINDOW]]
            yield from pieces(rows, max_tokens, self.pack)

    def loss_sum(self, model: Transformer, batch: Batch) -> Tensor:
        """Summed negative log-likelihood of the target tokens, in nats."""
        device = model.embed.weight.device
        targets = batch.targets[batch.learned].to(device)  # (N,)
        segments = None if batch.segments is None else batch.segments.to(device)
        # Padded on the right, a causal model needs no mask: no real position looks that far.
        hidden = model(
            batch.tokens.to(device),
            segments=segments,
            wanted=batch.learned.to(device),
            hidden_only=True,
        )  # (N, D)
        return model.nll(hidden, targets)

    def example(self) -> tuple[list[int], list[int]]:
        return self.encode(0)

    def summary(self) -> dict[str, object]:
        """What the data is, for run.json."""
        facts: dict[str, object] = {
            "objective": "sft", "max_length": self.max_length, "pack": self.pack
        }  # fmt: skip
        for name, rows in (("train", self.train), ("held_out", self.held_out)):
            facts[f"{name}_rows"] = len(rows)
            if isinstance(rows, Records | Rows):
                facts[f"{name}_file"], facts[f"{name}_sha256"] = str(rows.path), rows.sha256
        return facts


def rows_of(data: str | os.PathLike[str] | Rowset) -> Rowset:
    return data if isinstance(data, Records | Rows) else open_records(data)


def size(row: Mapping[str, object]) -> int:
    """Characters of a row: near enough to its cost to sort by, without tokenizing it."""
    if "messages" in row:
        return sum(len(m["content"]) for m in row["messages"])  # type: ignore[attr-defined, misc]
    return sum(len(value) for value in row.values() if isinstance(value, str))


def encode_row(tokenizer: Tokenizer, row: Mapping[str, object]) -> tuple[list[int], list[int]]:
    """(ids, mask) of a row of any of the three kinds, ending with the end token."""
    if "messages" in row:
        return tokenizer.chat(row["messages"])  # type: ignore[arg-type]
    head = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    if "prompt" in row:
        prompt = head + tokenizer.encode(str(row["prompt"]))
        last = prompt[-1] if prompt else None
        answer = [*tokenizer.encode(str(row["completion"]), after=last), tokenizer.eos]
        return prompt + answer, [0] * len(prompt) + [1] * len(answer)
    if "text" in row:
        text = [*tokenizer.encode(str(row["text"])), tokenizer.eos]
        return head + text, [0] * len(head) + [1] * len(text)
    raise ConfigError(f"a row has the keys {', '.join(row)}; allowed: prompt and completion, "
                      "messages, or text")  # fmt: skip


def fit_length(ids: list[int], mask: list[int], most: int) -> tuple[list[int], list[int]]:
    """The last `most` tokens, or as much as fits of a last answer that is longer than that."""
    answer = len(mask)  # where the last run of learned tokens begins
    while answer > 0 and mask[answer - 1] == 0:
        answer -= 1
    while answer > 0 and mask[answer - 1] == 1:
        answer -= 1
    cut = len(ids) - most
    if 1 in mask:
        cut = min(cut, max(0, answer - 1))  # something must stand before the first target
    return ids[cut : cut + most], mask[cut : cut + most]


def pieces(
    rows: Sequence[tuple[list[int], list[int]]], max_tokens: int, pack: str = "off"
) -> list[Batch]:
    """The rows in batches of at most `max_tokens`, padding counted."""
    lengths = [len(ids) - 1 for ids, _ in rows]
    if pack == "auto":  # a row without a neighbour gains nothing
        area = len(rows) * max(lengths, default=0)
        pack = "on" if len(rows) > 1 and sum(lengths) < FILL * area else "off"
    if pack == "on":
        cut = packed_batches(lengths, max_tokens)
        return [packed([rows[i] for i in piece], max_tokens) for piece in cut]
    cut = micro_batches(range(len(rows)), lengths, len(rows), max_tokens)
    return [collate([rows[i] for i in piece]) for piece in cut]


def collate(rows: Sequence[tuple[list[int], list[int]]]) -> Batch:
    """Right-padded tensors, shifted by one: position t reads token t and predicts t + 1."""
    longest = max(len(ids) for ids, _ in rows) - 1
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    targets, learned = torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    for i, (ids, mask) in enumerate(rows):
        n = len(ids) - 1
        tokens[i, :n] = torch.tensor(ids[:-1])
        targets[i, :n] = torch.tensor(ids[1:])
        learned[i, :n] = torch.tensor(mask[1:], dtype=torch.bool)
    return Batch(tokens, targets, learned, sum(len(ids) - 1 for ids, _ in rows))


def packed(rows: Sequence[tuple[list[int], list[int]]], max_tokens: int) -> Batch:
    """One row of all, shifted by one within each, and filled up to a multiple of GRAIN.

    What fills are texts of their own, none longer than the longest, which nothing learns from and
    no other sees. A CPU's library makes a program for every new shape of a product, half a megabyte
    each, and keeps them: with every total of a few hundred tokens they cost more than what is
    filled (benchmarks/LOG.md).
    """
    lengths = [len(ids) - 1 for ids, _ in rows]
    real = sum(lengths)
    spare = max(0, min(-real % GRAIN, max_tokens - real))
    fill, longest = [0] * spare, max(1, *lengths)
    texts = [*lengths, *(min(longest, spare - k) for k in range(0, spare, longest))]
    return Batch(
        torch.tensor([i for ids, _ in rows for i in ids[:-1]] + fill)[None],
        torch.tensor([i for ids, _ in rows for i in ids[1:]] + fill)[None],
        torch.tensor([bit == 1 for _, mask in rows for bit in mask[1:]] + [False] * spare)[None],
        real,
        torch.arange(len(texts)).repeat_interleave(torch.tensor(texts))[None],
    )
