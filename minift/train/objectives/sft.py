"""Supervised fine-tuning: rows of text, which of their tokens are targets, and the loss of those.

loss = - Σ log softmax(logits_t)_(token t + 1)        over the target tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from minift.data.read import Records, open_records
from minift.data.split import Rows
from minift.errors import ConfigError, EncodeError
from minift.model.transformer import Transformer
from minift.tokenizers import chat
from minift.tokenizers.bos import bos_ids
from minift.tokenizers.chat_truncate import render_within
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.text_format import TextFormat
from minift.train import checks
from minift.train.checks import Cuts, Data, Rowset
from minift.train.chunks import Chunks, count_of, part_of
from minift.train.objectives.batch import Batch, Row, Window, token_batches, windows

LONGEST = 1024  # tokens of a row, unless the model has room for fewer
PACK = ("auto", "on", "off")


class SFT:
    """Supervised fine-tuning: predict the answers, given what stands before them.

    A row is {"prompt", "completion"}, {"messages": [...]} or {"text"}. The targets of the first are
    the completion and the end token, of a conversation what the assistant says, of a text all.
    `train` and `held_out` are paths or sequences of such rows. Prompt and completion are tokenized
    apart, so that no token straddles the border.

    A text over `max_length` tokens becomes several rows (chunks.py), and nothing of it is lost. A
    prompt loses its beginning, a conversation its oldest turns (chat_truncate.py), BOS and the
    system turn excepted; an answer longer than that loses its end. `max_length` is 1024, or what
    the model has room for if that is less.

    `pack`: "on" puts the rows of a batch behind each other in one row without padding, each blind
    to the others; "off" pads them; "auto" packs where padding would cost more than packing does.
    The loss is the same.
    """

    fits_cuda_graph = True

    def __init__(
        self,
        tokenizer: Tokenizer,
        train: Data,
        held_out: Data | None = None,
        *,
        max_length: int | None = None,
        pack: str = "auto",
    ):
        if max_length is not None and max_length < 2:
            raise ConfigError(f"max_length: found {max_length}, allowed 2 or more")
        if pack not in PACK:
            raise ConfigError(f"pack: found {pack}, allowed {', '.join(PACK)}")
        self.tokenizer, self.pack = tokenizer, pack
        self.max_length, self.by_default = max_length or LONGEST, max_length is None
        self.train = rows_of(train)
        self.held_out: Rowset | tuple[()] = () if held_out is None else rows_of(held_out)
        if not len(self.train):
            raise ConfigError("train: found no rows, allowed one or more")
        self.truncated: set[tuple[bool, int]] = set()
        self.window = Window(self.encode)
        self.long: dict[bool, dict[int, NDArray[np.int32]]] = {}  # ids of texts in parts
        self.chunks: dict[bool, Chunks] = {}
        self.cut_up()
        self.cuts: dict[bool, Cuts] = {}  # of the training data, and of what is held out
        self.checked: object = None

    def cut_up(self) -> None:
        """Find the texts that become several rows, on both sides."""
        for held_out in (False, True):
            if held_out and self.held_out is self.train:
                self.long[True], self.chunks[True] = self.long[False], self.chunks[False]
            else:
                self.chunks[held_out] = self.find_chunks(held_out)

    def find_chunks(self, held_out: bool) -> Chunks:
        """Which texts of a side are over the length, and into how many rows each is cut."""
        rows, counts = self.held_out if held_out else self.train, dict[int, int]()
        before, self.long[held_out] = self.long.get(held_out, {}), {}
        if not rows or not (rows.is_mixed or rows.kind == "text"):
            return Chunks(len(rows), counts)
        for i, row in enumerate(rows):
            if kind_of(row) != "text" or checks.most_tokens(row["text"]) + 2 <= self.max_length:
                continue
            ids = before.get(i)
            if ids is None:
                ids = np.array(self.whole(i, held_out)[0], np.int32)
            if (parts := count_of(len(ids), self.max_length)) > 1:
                counts[i], self.long[held_out][i] = parts, ids
        return Chunks(len(rows), counts)

    def check(self, model: Transformer) -> None:
        """Raise for what is wrong with a row or its length, and count what will be cut."""
        usual, most = self.max_length, checks.check_room(self.max_length, model, self.by_default)
        if most != self.max_length:
            self.max_length, self.window = most, Window(self.encode)
            self.cut_up()
        state = most, self.tokenizer.chat_template, self.tokenizer.template
        if state == self.checked:
            return
        vocabulary = checks.Vocabulary(self.tokenizer)
        self.cuts = {False: self.check_rows(vocabulary, False)}
        if len(self.held_out):
            same = self.held_out is self.train
            self.cuts[True] = self.cuts[False] if same else self.check_rows(vocabulary, True)
        self.truncated.clear()
        checks.say_capped(usual, most, self.cuts.values())
        self.checked = state

    def check_rows(self, vocabulary: checks.Vocabulary, held_out: bool) -> Cuts:
        """Check one side of the data."""
        rows = checks.side_of(self, held_out)
        shapes: dict[object, tuple[int, bool]] = {}  # tokens of the first, whether any is learned
        marks: list[str] | None = None
        spelled, unlearned, long = checks.Counted(), checks.Counted(), []
        for i, row in enumerate(rows):
            kind = kind_of(row)
            if kind == "messages":
                messages: Any = row["messages"]
                marks = checks.marks_of(self.tokenizer) if marks is None else marks
                shape = checks.shape_of(messages, marks)
                if shape not in shapes:
                    ids, mask = self.whole(i, held_out)
                    shapes[shape] = len(ids), any(mask)
                    if len(ids) > self.max_length:  # is there room for what the template writes?
                        self.encode(i, held_out)
                texts, (around, learned) = [m["content"] for m in messages], shapes[shape]
                if not learned:
                    unlearned.add(i)
            else:
                texts, around = [row[field] for field in FIELDS[kind]], 2
            if any(map(vocabulary.may_refuse, texts)):
                self.whole(i, held_out)
            if any(map(vocabulary.spells_special, texts)):
                spelled.add(i)
            if around + sum(map(checks.most_tokens, texts)) > self.max_length and kind != "text":
                long.append(i)
        if unlearned.count == len(rows) and not held_out:
            raise ConfigError(f"{rows.path}: no row has anything to learn: every assistant turn "
                              'has "weight" 0, or there is none')  # fmt: skip
        unlearned.say(rows, "nothing to learn", 'every assistant turn has "weight" 0')
        spelled.say(rows, "a special token in a text", "it is read as plain text")
        return checks.count_cuts(
            long, len(rows), lambda i: len(self.whole(i, held_out)[0]) > self.max_length
        )

    def cut_lines(self) -> list[str]:
        """What is cut and what becomes several rows, for a person."""
        lines = []
        for held_out, cuts in self.cuts.items():
            where, chunks = " held out" if held_out else "", self.chunks[held_out]
            if chunks.counts:
                lines.append(
                    f"{len(chunks.counts):,} of {cuts.rows:,} texts{where} are longer than "
                    f"{self.max_length:,} tokens: {len(chunks):,} rows in all, nothing is cut"
                )
            if cuts.cut:
                lines.append(f"{cuts}{where} {cuts.verb} cut to {self.max_length:,} tokens")
        return lines

    @property
    def rows(self) -> int:
        """Rows to train on, the parts of long texts one each."""
        return len(self.chunks[False])

    @property
    def held_out_rows(self) -> int:
        """Rows to evaluate on, counted likewise."""
        return len(self.chunks[True])

    @property
    def packs(self) -> bool:
        """True unless `pack` is "off"."""
        return self.pack != "off"

    def load_window(self, indices: Sequence[int]) -> None:
        """Tokenize these training rows and keep their ids, in place of those kept before."""
        self.window.load(indices)

    def lengths(self, indices: Sequence[int]) -> list[int]:
        """Tokens of these training rows, targets or not."""
        return [len(self.window[i][0]) for i in indices]

    def whole(self, i: int, held_out: bool = False) -> Row:
        """(ids, mask) of row i of the data, however long."""
        rows = checks.side_of(self, held_out)
        try:
            return encode_row(self.tokenizer, rows[i])
        except ConfigError as error:
            raise row_error(rows, i, error) from None

    def encode(self, i: int, held_out: bool = False) -> Row:
        """(ids, mask) of row i, cut to `max_length`; mask 1 = a target, the end token is one."""
        rows, most = checks.side_of(self, held_out), self.max_length
        text, k = self.chunks[held_out].place(i)
        opening = len(bos_ids(self.tokenizer))
        if text in self.chunks[held_out].counts:
            return part_of(self.long[held_out][text], k, most, opening > 0)
        ids, mask = self.whole(text, held_out)
        if len(ids) <= most:
            return ids, mask
        self.truncated.add((held_out, i))
        if kind_of(rows[text]) == "messages":
            try:
                return render_within(self.tokenizer, rows[text]["messages"], most)[:2]
            except ConfigError as error:
                raise row_error(rows, text, error) from None
        return fit_length(ids, mask, most, opening)

    def encode_rows(self, indices: Sequence[int]) -> list[Row]:
        """(ids, mask) of these training rows."""
        return [self.window[i] for i in indices]

    def batches(self, indices: Sequence[int], max_tokens: int) -> list[Batch]:
        """These training rows as batches of at most `max_tokens` each, padding counted."""
        return token_batches(self.encode_rows(indices), max_tokens, self.pack)

    def held_out_batches(self, max_tokens: int) -> Iterator[Batch]:
        """All held-out rows, those of like length together, `max_tokens` a batch."""
        chunks, parts = self.chunks[True], self.chunks[True].counts
        sizes = [size(row) // parts.get(k, 1) for k, row in enumerate(self.held_out)]
        order = sorted(range(len(chunks)), key=lambda i: sizes[chunks.place(i)[0]])
        for some in windows(len(order)):
            rows = [self.encode(order[k], True) for k in some]
            yield from token_batches(rows, max_tokens, self.pack)

    def loss_sum(self, model: Transformer, batch: Batch) -> Tensor:
        """Summed negative log-likelihood of the target tokens, in nats."""
        device = model.embed.weight.device
        assert batch.loss_mask is not None
        targets = batch.targets[batch.loss_mask].to(device)  # (N,)
        segments = None if batch.segments is None else batch.segments.to(device)
        hidden = model(
            batch.tokens.to(device),
            segments=segments,
            selected=batch.loss_mask.to(device),
            hidden_only=True,
        )  # (N, D)
        return model.nll(hidden, targets)

    def example(self) -> Row:
        """(ids, mask) of the first training row."""
        return self.encode(0)

    def summary(self) -> dict[str, object]:
        """What the data is, for run.json."""
        facts: dict[str, object] = {
            "objective": "sft", "max_length": self.max_length, "pack": self.pack
        }  # fmt: skip
        facts |= checks.row_facts(self)
        for name, chunks in (("train", self.chunks[False]), ("held_out", self.chunks[True])):
            if chunks.counts:
                facts[f"{name}_chunks"] = len(chunks)
        return facts | checks.cut_facts(self.cuts) | {"texts": self.text_format().as_json()}

    def text_format(self) -> TextFormat:
        """What this training decides about texts, to be used wherever the model is."""
        rows = self.train
        texts = TextFormat(
            system=common_system(rows), template=rows.template, target=rows.target,
            labels=rows.labels or (), max_length=self.max_length,
        )  # fmt: skip
        return texts.by(self.tokenizer)


def common_system(rows: Rowset) -> str | None:
    """The system message that every conversation begins with; None where they differ."""
    found: set[str] = set()
    for row in rows:
        messages: Any = row.get("messages")
        if not messages or messages[0]["role"] != "system":
            return None
        found.add(messages[0]["content"])
        if len(found) > 1:
            return None
    return next(iter(found), None) or None


def rows_of(data: Data) -> Rowset:
    return data if isinstance(data, Records | Rows) else open_records(data)


def size(row: Mapping[str, object]) -> int:
    """Characters of a row: near enough to its cost to sort by, without tokenizing it."""
    if "messages" in row:
        return sum(len(m["content"]) for m in row["messages"])  # type: ignore[attr-defined, misc]
    return sum(len(value) for value in row.values() if isinstance(value, str))


FIELDS = {"prompt": ("prompt", "completion"), "text": ("text",)}


def kind_of(row: Mapping[str, object]) -> str:
    """Which of the three kinds a row is."""
    for kind, fields in (("messages", ("messages",)), *FIELDS.items()):
        if all(field in row for field in fields):
            return kind
    raise ConfigError(f"a row has the keys {', '.join(row)}; allowed: prompt and completion, "
                      "messages, or text")  # fmt: skip


def row_error(rows: Rowset, i: int, error: ConfigError) -> ValueError:
    """The error of a row by its file and line, or by its number."""
    if isinstance(error, chat.Unwritten):
        messages: Any = rows[i]["messages"]
        found = f"{chat.turn_of(messages, error.number)}"
        allowed = f"what the chat template writes ({error.reason}), or another --chat-template"
        return rows.error(i, f"messages[{error.number - 1}].role", found, allowed)
    if isinstance(error, EncodeError):
        return rows.error(i, None, checks.spelled(error), "text that the vocabulary spells")
    return ConfigError(f"{rows.path} {rows.place(i)}: {error}")


def encode_row(tokenizer: Tokenizer, row: Mapping[str, object]) -> Row:
    """(ids, mask) of a row of any of the three kinds, ending with the end token."""
    kind = kind_of(row)
    if kind == "messages":
        return tokenizer.chat(row["messages"])  # type: ignore[arg-type]
    head = bos_ids(tokenizer)
    if kind == "prompt":
        prompt = head + tokenizer.encode(str(row["prompt"]))
        last = prompt[-1] if prompt else None
        answer = [*tokenizer.encode(str(row["completion"]), after=last), tokenizer.eos]
        return prompt + answer, [0] * len(prompt) + [1] * len(answer)
    text = [*tokenizer.encode(str(row["text"])), tokenizer.eos]
    return head + text, [0] * len(head) + [1] * len(text)


def fit_length(ids: list[int], mask: list[int], most: int, opening: int = 0) -> Row:
    """`most` tokens of a prompt and its answer: without the beginning, but for `opening` tokens.

    An answer that is longer than that loses its end; something stands before its first token.
    """
    answer = mask.index(1) if 1 in mask else len(ids)
    prompt = min(answer - opening, max(0, most - opening - (len(ids) - answer)))
    if not opening and answer:
        prompt = max(1, prompt)
    start = answer - prompt
    ids, mask = ids[:opening] + ids[start:], mask[:opening] + mask[start:]
    return ids[:most], mask[:most]
