"""What `fit` asks of an objective.

An objective owns its data, how rows become tensors, and its loss sum. `fit` asks for rows by
number, sums the losses of a whole optimizer step and divides once by the number of its targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from minift.model.transformer import Transformer

if TYPE_CHECKING:
    from minift.tokenizers.interface import Tokenizer
from minift.train.objectives.batch import Row, Window


class StepBatch(Protocol):
    """What `fit` asks of a batch; the rest is between an objective's own methods."""

    @property
    def num_targets(self) -> int:
        """What the loss is a mean over: target tokens, or rows."""

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads, without padding."""


class Objective(Protocol):
    """What `fit` needs."""

    @property
    def packs(self) -> bool:
        """True if rows of any length can share a batch without padding.

        With order="auto", rows of like length are grouped otherwise.
        """

    @property
    def fits_cuda_graph(self) -> bool:
        """True if the loss is that of the next token over `encode_rows`, a TokenObjective.

        A CUDA graph then builds its batches of fixed shape by itself.
        """

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Written beside the weights of a model that is trained without an adapter.

        None where there is none; then no such weights are written.
        """

    def check(self, model: Transformer) -> None:
        """Raise ConfigError or DataError, before the first step, for all that the data decides.

        It may change `rows`: a text longer than the model has room for becomes several.
        """

    @property
    def rows(self) -> int:
        """Rows to train on."""

    def load_window(self, indices: Sequence[int]) -> None:
        """Encode these training rows now and keep them, in place of those kept before.

        Called once for every window of rows (512 or more), before its batches. It only saves time:
        every other method encodes a row that is not kept.
        """

    def lengths(self, indices: Sequence[int]) -> Sequence[int]:
        """Tokens of each of these training rows."""

    def batches(self, indices: Sequence[int], max_tokens: int) -> Sequence[StepBatch]:
        """These training rows as micro-batches of at most `max_tokens` each, padding counted.

        A row longer than that is a batch by itself. Raises DataError where a row cannot be encoded.
        """

    def held_out_batches(self, max_tokens: int) -> Iterator[StepBatch]:
        """All held-out rows as batches of at most `max_tokens` each, padding counted."""

    def loss_sum(self, model: Transformer, batch: Any) -> Tensor:
        """The losses of a batch's targets, summed, in nats: a scalar with its graph."""

    def example(self) -> tuple[list[int], list[int]]:
        """Ids of the first row, and a mask: 1 at each token that is a target."""

    def summary(self) -> dict[str, object]:
        """What the data is, for run.json. `texts` there is how texts are made (TextFormat)."""


class TokenObjective(Objective, Protocol):
    """An objective whose loss is that of the next token, and nothing else."""

    @property
    def window(self) -> Window[Row]:
        """The training rows that `load_window` encoded."""

    def encode_rows(self, indices: Sequence[int]) -> list[Row]:
        """(ids, mask) of these training rows."""
