"""Classification: one label a text, from a head on the model instead of a word after a prompt.

    loss = - log softmax(scores)_label        scores (C,): what a model `with_labels` returns

A row is {"text", "label"} or, for two texts, {"text", "text_pair", "label"}, the label a name or
its number; or any columns, through the template, pair, target and labels of `open_records`. The
tokenizer puts around the text what the model was trained with: [CLS] text [SEP], <s> text </s>, BOS
or nothing. Where tokens stand after the text (encoders), a long text loses its end, else (decoders,
which score the last token) its beginning; of two texts the longer is cut first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from minift.data.read import Records, open_records
from minift.data.split import Rows
from minift.errors import ConfigError, EncodeError, one_line
from minift.model.transformer import Transformer
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.text_format import TextFormat
from minift.train import checks
from minift.train.checks import Cuts, Data, Rowset, spelled
from minift.train.objectives.batch import Batch, Window, pad, split_rows, windows

TEXT, LABEL = "{text}", "label"  # the template and the target of a file with these two columns
LONGEST = 256  # tokens of a text in training
INSIDE = -1  # stands for a text where only what is around it matters


class Encoded(NamedTuple):
    """What a model reads of one row, and what it shall say."""

    ids: list[int]
    types: list[int]  # the token type of each id
    label: int


class Classification:
    """Learn the label of a text.

    `train` and `held_out` are paths, or what `open_records` returned for a template, a target and
    `labels`, or sequences of {"text", "label"}, with or without a "text_pair". `labels` may be left
    out where the records have them.
    """

    packs = fits_cuda_graph = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        train: Data,
        held_out: Data | None = None,
        *,
        labels: Sequence[str] | None = None,
        max_length: int | None = None,
    ):
        if max_length is not None and max_length < 3:
            raise ConfigError(f"max_length: found {max_length}, allowed 3 or more")
        self.tokenizer = tokenizer
        self.max_length, self.by_default = max_length or LONGEST, max_length is None
        self.labels = labels_of(train, labels)
        self.train = texts_of(train, self.labels)
        self.held_out: Rowset | tuple[()] = ()
        if held_out is not None:
            self.held_out = texts_of(held_out, self.labels)
            theirs = self.held_out.labels
            if theirs is not None and theirs != self.labels:
                raise ConfigError(f"held_out: found the labels {', '.join(theirs)}, allowed those "
                                  f"of train, {', '.join(self.labels)}")  # fmt: skip
        if not len(self.train):
            raise ConfigError("train: found no rows, allowed one or more")
        self.truncated: set[tuple[bool, int]] = set()
        self.window = Window(self.encode)
        self.cuts: dict[bool, Cuts] = {}  # of the training data, and of what is held out
        self.checked: int | None = None

    def check(self, model: Transformer) -> None:
        """Raise for a head, a label, a text or a length that cannot be, and count what is cut."""
        config = model.config
        if config.head != "label":
            raise self.no_head(model)
        if tuple(config.labels) != self.labels:
            raise ConfigError(f"labels: found {', '.join(self.labels)}, allowed those of "
                              f"{model.source}, {', '.join(config.labels)}")  # fmt: skip
        usual, most = self.max_length, checks.check_room(self.max_length, model, self.by_default)
        if most == self.checked:
            return
        self.max_length, self.window = most, Window(self.encode)
        vocabulary = checks.Vocabulary(self.tokenizer)
        self.cuts = {False: self.check_rows(vocabulary, False)}
        if len(self.held_out):
            self.cuts[True] = self.check_rows(vocabulary, True)
        self.truncated.clear()
        checks.say_capped(usual, most, self.cuts.values())
        self.checked = most

    def check_rows(self, vocabulary: checks.Vocabulary, held_out: bool) -> Cuts:
        """Check one side of the data."""
        rows = checks.side_of(self, held_out)
        empty: list[int] = []
        added = [len(self.tokenizer.wrap(empty, other)[0]) for other in (None, empty)]
        tried, spelled, long = set[bool](), checks.Counted(), []
        for i in range(len(rows)):
            text, other, _ = texts_and_label(rows, i)
            texts, paired = [text, other or ""], other is not None
            # Whether there is room for a token of each, and whether there is a token at all.
            doubtful = paired not in tried or any(map(vocabulary.may_refuse, texts))
            if doubtful or (not added[paired] and vocabulary.may_be_nothing("".join(texts))):
                self.encode(i, held_out)
            tried.add(paired)
            if any(map(vocabulary.spells_special, texts)):
                spelled.add(i)
            if added[paired] + sum(map(checks.most_tokens, texts)) > self.max_length:
                long.append(i)
        spelled.say(rows, "a special token in a text", "it is read as plain text")

        def is_cut(i: int) -> bool:
            self.encode(i, held_out)
            return (held_out, i) in self.truncated

        return checks.count_cuts(long, len(rows), is_cut)

    def cut_lines(self) -> list[str]:
        """What is cut, for a person."""
        return [
            f"{cuts}{' held out' if held_out else ''} {cuts.verb} cut to {self.max_length:,} tokens"
            for held_out, cuts in self.cuts.items()
            if cuts.cut
        ]

    @property
    def rows(self) -> int:
        """Texts to train on."""
        return len(self.train)

    def load_window(self, indices: Sequence[int]) -> None:
        """Tokenize these training rows and keep their ids, in place of those kept before."""
        self.window.load(indices)

    def lengths(self, indices: Sequence[int]) -> list[int]:
        """Tokens of these training rows."""
        return [len(self.window[i].ids) for i in indices]

    def encode(self, i: int, held_out: bool = False) -> Encoded:
        """One row as the model reads it."""
        rows = checks.side_of(self, held_out)
        text, other, label = texts_and_label(rows, i)
        try:
            ids, types, cut = wrapped(self.tokenizer, text, self.max_length, other)
        except EncodeError as error:
            allowed = "text that the vocabulary spells"
            raise rows.error(i, None, spelled(error), allowed) from None
        if cut:
            self.truncated.add((held_out, i))
        return Encoded(ids, types, label)

    def batches(self, indices: Sequence[int], max_tokens: int) -> list[Batch]:
        """These training rows as batches of at most `max_tokens` each, padding counted."""
        rows = [self.window[i] for i in indices]
        return [batch for _, batch in label_batches(rows, max_tokens)]

    def held_out_batches(self, max_tokens: int) -> Iterator[Batch]:
        """All held-out texts in their order, those of like length of each window together."""
        for some in windows(len(self.held_out)):
            rows = [self.encode(i, True) for i in some]
            yield from (batch for _, batch in label_batches(rows, max_tokens))

    def loss_sum(self, model: Transformer, batch: Batch) -> Tensor:
        """Summed cross-entropy of the labels, in nats."""
        scores = scores_of(model, batch)  # (B, C)
        if scores.shape != (batch.num_targets, len(self.labels)):
            raise self.no_head(model)
        return F.cross_entropy(scores.float(), batch.targets.to(scores.device), reduction="sum")

    def no_head(self, model: Transformer) -> ConfigError:
        return ConfigError(
            f"classification: {model.source} has no head for {len(self.labels)} "
            "labels; minift.with_labels gives it one"
        )

    def example(self) -> tuple[list[int], list[int]]:
        """The first text and a mask of 0: no token of it is a target, its label is."""
        ids = self.encode(0).ids
        return ids, [0] * len(ids)

    def summary(self) -> dict[str, object]:
        """What the data is, for run.json."""
        facts: dict[str, object] = {"objective": "classification", "max_length": self.max_length}
        facts["labels"] = list(self.labels)
        facts |= checks.row_facts(self) | checks.cut_facts(self.cuts)
        # So that others can be read the same way.
        facts["template"], facts["target"] = self.train.template, self.train.target
        if self.train.pair is not None:
            facts["pair"] = self.train.pair
        return facts | {"texts": self.text_format().as_json()}

    def text_format(self) -> TextFormat:
        """What this training decides about texts, to be used wherever the model is."""
        rows = self.train
        return TextFormat(
            template=rows.template or TEXT, target=rows.target or LABEL, pair=rows.pair,
            labels=self.labels, max_length=self.max_length,
        )  # fmt: skip


def scores_of(model: Transformer, batch: Batch) -> Tensor:
    """The scores of every label (B, C), on the model's device."""
    device = model.embed.weight.device
    # A model with one token type, or none, has no use for those of its tokenizer.
    types = batch.token_types if model.config.token_types > 1 else None
    return model(
        batch.tokens.to(device),
        mask=None if batch.mask is None else batch.mask.to(device),
        token_types=None if types is None else types.to(device),
    )


# ---- rows ----------------------------------------------------------------------------------------


def labels_of(data: object, labels: Sequence[str] | None) -> tuple[str, ...]:
    """The names: those given, or those of the records."""
    if isinstance(labels, str):  # each of its characters would be a label
        raise ConfigError(f'labels: found the text "{one_line(labels)}", allowed a list of names')
    there = data.labels if isinstance(data, Records | Rows) else None
    if labels is not None and there is not None and tuple(labels) != there:
        raise ConfigError(f"labels: found {', '.join(labels)}, and the data has {', '.join(there)}")
    found = tuple(labels or there or ())
    if len(found) < 2:
        raise ConfigError("labels: found fewer than two, allowed two or more names")
    return found


def texts_of(data: Data, labels: Sequence[str]) -> Rowset:
    if isinstance(data, Records | Rows):
        return data
    return open_records(data, template=TEXT, target=LABEL, labels=labels)


def texts_and_label(rows: Rowset, i: int) -> tuple[str, str | None, int]:
    """The text, the second text where there is one, and the index of the label."""
    row, found = rows[i], rows.label_index(i)
    if found is None:
        raise ConfigError(f"{rows.path}: opened without labels; give template, target, labels")
    other = row.get("pair")
    return str(row["prompt"]), None if other is None else str(other), found


def wrapped(
    tokenizer: Tokenizer, text: str, most: int, other: str | None = None
) -> tuple[list[int], list[int], bool]:
    """Ids and token types that a model reads for a text or two, and whether some was cut off."""
    one = tokenizer.encode(text)
    two = None if other is None else tokenizer.encode(other)
    added = len(tokenizer.wrap([], None if two is None else [])[0])
    room, fewest = most - added, 1 if two is None else 2
    if room < fewest:
        raise ConfigError(f"max_length: found {most}, allowed {added + fewest} or more: "
                          f"{added} special tokens stand around the text")  # fmt: skip
    first, second = (room, 0) if two is None else shares(len(one), len(two), room)
    # Rust's tokenizers and so transformers' cut the ids of the texts, never the tokens around them.
    ends = tokenizer.wrap([INSIDE])[0][-1] != INSIDE
    kept = one[:first] if ends else one[max(0, len(one) - first) :]
    other_kept = None
    if two is not None:
        other_kept = two[:second] if ends else two[max(0, len(two) - second) :]
    ids, types = tokenizer.wrap(kept, other_kept)
    if not ids:
        raise EncodeError("a text without a token")
    return ids, types, len(one) + len(two or ()) > room


def shares(one: int, two: int, room: int) -> tuple[int, int]:
    """Tokens that two texts keep: the longer is cut to the shorter, then both to half of the room.

    The rounding is that of tokenizers' `longest_first`: an odd token is the longer text's.
    """
    short, long = min(one, two), max(one, two)
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (short, long) if one <= two else (long, short)


def label_batches(rows: Sequence[Encoded], max_tokens: int) -> list[tuple[list[int], Batch]]:
    """Rows of like length together: (their numbers among `rows`, the batch)."""
    parts = split_rows([len(row.ids) for row in rows], max_tokens)
    return [(part, label_batch([rows[i] for i in part])) for part in parts]


def label_batch(rows: Sequence[Encoded]) -> Batch:
    """Texts side by side, padded on the right, with their labels."""
    lengths, types = [len(row.ids) for row in rows], pad([row.types for row in rows])
    return Batch(
        pad([row.ids for row in rows]),
        torch.tensor([row.label for row in rows]),
        sum(lengths),
        mask=pad([[1] * n for n in lengths], torch.bool),
        token_types=types if bool(types.any()) else None,
    )
