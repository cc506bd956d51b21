"""What may be attached to a transformer: the protocols a forward pass, or decoding, relies on.

The model knows no fine-tuning method. Whoever attaches one puts objects of these types into the
model's seams (listed in transformer.py); whoever replaces a part of the forward pass by something
faster asks them what they do.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


class Extension(Protocol):
    """Attached to a whole model, with hooks on its forward pass: an item of `model.extensions`."""

    @property
    def is_identity(self) -> bool:
        """True if its hooks leave the forward pass as it is."""

    @property
    def row_keys(self) -> Sequence[Hashable] | None:
        """For each row of the next batch, what is applied to it: rows with equal keys are computed
        alike. None: all rows are."""

    def recompute_context(self) -> AbstractContextManager[None]:
        """Asked for in a forward pass, entered in its backward pass while a checkpointed block is
        computed again: what is attached acts as it did."""


def checkpoint_contexts(
    extensions: Sequence[Extension],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For torch's `checkpoint`: what is entered around a block now, and when it is recomputed."""
    return nullcontext(), entered([one.recompute_context() for one in extensions])


@contextmanager
def entered(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield


@runtime_checkable
class LinearChange(Protocol):
    """Called instead of a Linear of a projection group: an item of `group.changes`."""

    def __call__(self, linear: nn.Linear, x: Tensor) -> Tensor: ...

    def adapted(self, linear: nn.Linear) -> object | None:
        """The Linear with the low-rank product that is added to it, as the kernels take it; None
        if the change is anything else."""


class FusedGroup(Protocol):
    """Computes all the named members of a projection group at once, or returns None."""

    def __call__(
        self, group: Any, names: tuple[str, ...], x: Tensor
    ) -> tuple[Tensor, ...] | None: ...


class FusedMLP(Protocol):
    """Computes a whole MLP at once, or returns None."""

    def __call__(self, block: Any, x: Tensor) -> Tensor | None: ...
