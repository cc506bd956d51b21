"""One optimizer step: started with row numbers and a learning rate, read as losses and counts.

    step.start(rows, lr)       forward and backward passes, clipping, the update
    step.result()              the mean loss a target and the gradient norm of the oldest step that
                               was started and not yet read

`EagerStep` runs a step when it is started. `cuda_graph.GraphStep` only queues it, so that the CPU
need not wait for the GPU; `fit` may start `overlap` more steps before it reads a result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from minift.errors import ConfigError
from minift.kernels.dropout import keyed
from minift.model.transformer import Transformer
from minift.train.config import TrainConfig
from minift.train.objectives.protocol import Objective, StepBatch
from minift.train.optimizer import AdamW


@dataclass(frozen=True)
class PlannedStep:
    """A step before it is taken."""

    step: int  # counted from 0
    lr: float
    rows: list[int]  # numbers of the training rows
    evaluate: bool  # an evaluation follows


@dataclass(frozen=True)
class StepResult:
    """A step after it was taken."""

    loss: float  # mean of its targets, in nats
    norm: float  # of the gradient, before clipping
    num_tokens: int  # read, without padding
    num_targets: int

    @property
    def changed_weights(self) -> bool:
        """True if the step had a target, and a finite loss and gradient."""
        return self.num_targets > 0 and math.isfinite(self.loss) and math.isfinite(self.norm)


@dataclass(frozen=True)
class Progress:
    """One line of metrics.jsonl, and what a screen shows."""

    step: int  # counted from 1
    steps: int
    loss: float
    lr: float
    norm: float
    tokens: int
    targets: int
    seconds: float  # since the start of the run
    held_out_loss: float | None = None


@dataclass
class Run:
    """What a run did. `losses` has the mean loss a target of every step, in nats."""

    config: TrainConfig
    planned: int  # steps
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out loss)
    best_step: int | None = None  # of the lowest held-out loss
    kept_step: int | None = None  # whose weights the model and the run's folder have
    skipped: int = 0  # steps without a target, or not finite
    tokens: int = 0  # read, padding left out
    seconds: float = 0.0
    ended: str = "unfinished"  # or finished, interrupted, diverged, failed: WHY
    out: Path | None = None

    @property
    def steps(self) -> int:
        """Steps that were taken."""
        return len(self.losses)

    def add(self, result: StepResult, seconds: float) -> None:
        """Note the result of the next step; `seconds` since the start of the run."""
        self.losses.append(result.loss)
        self.norms.append(result.norm)
        self.tokens += result.num_tokens
        self.skipped += not result.changed_weights
        self.seconds = seconds

    @property
    def interrupted(self) -> bool:
        return self.ended == "interrupted"

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class OptimizerStep(Protocol):
    """What `fit` asks of a step."""

    overlap: int  # steps that may be started before the result of the first is read

    def start(self, rows: list[int], lr: float) -> None:
        """Begin a step over these training rows."""

    def result(self) -> StepResult:
        """The result of the oldest step that was started and not yet read."""

    def release(self) -> None:
        """End: every trained parameter has its own storage again, and no gradient."""


class LossModule(nn.Module):
    """Model and objective as one module whose forward returns the loss sum: what DDP wraps."""

    def __init__(self, model: Transformer, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Any) -> Tensor:
        return self.objective.loss_sum(self.model, batch)


class EagerStep:
    """An optimizer step that runs when it is started.

    `module` is a LossModule, or what wraps one (DDP, FSDP2): it is only called.
    """

    overlap = 0

    def __init__(
        self,
        module: nn.Module,
        objective: Objective,
        optimizer: AdamW,
        parameters: dict[str, nn.Parameter],
        config: TrainConfig,
    ):
        self.module, self.objective, self.optimizer = module, objective, optimizer
        self.parameters, self.config = parameters, config
        self.number = 0  # of the next step, counted from 0; a resumed run sets it
        self.checked = False
        self.taken: StepResult | None = None

    def start(self, rows: list[int], lr: float) -> None:
        batches = self.objective.batches(rows, self.config.micro_batch_tokens)
        # Known before the first backward pass, so that several processes can agree on the sum.
        num_targets = count_targets(batches)
        key = self.config.seed, self.number
        loss = accumulate_gradients(self.module, batches, num_targets, key)
        self.number += 1
        if not self.checked:
            check_gradients(self.parameters)
            self.checked = True
        norm = self.optimizer.clip(self.config.clip)
        num_tokens = sum(batch.num_tokens for batch in batches)
        self.taken = StepResult(loss, norm, num_tokens, num_targets)
        if self.taken.changed_weights:
            self.optimizer.set_rate(lr)
            self.optimizer.step()
        self.optimizer.zero_grad()

    def result(self) -> StepResult:
        assert self.taken is not None
        return self.taken

    def release(self) -> None:
        self.optimizer.release()


def count_targets(batches: Sequence[StepBatch]) -> int:
    """Targets of a whole step: what its loss is divided by."""
    return sum(batch.num_targets for batch in batches)


def accumulate_gradients(
    module: nn.Module,
    batches: Sequence[StepBatch],
    num_targets: int,
    key: tuple[int, int] = (0, 0),
) -> float:
    """Add up the gradients of a step's micro-batches; -> its mean loss a target, in nats.

    Dropout masks are a function of `key` (run seed, step) and the micro-batch's number.
    The loss is divided once, by the targets of the whole step, so that cutting a step into
    micro-batches changes nothing.
    """
    total = 0.0
    for number, batch in enumerate(batches):
        if batch.num_targets == 0:
            continue
        with keyed(*key, number):
            loss = module(batch)  # a sum
            (loss / num_targets).backward()
        total += float(loss.detach())
    return total / max(1, num_targets)


def check_gradients(parameters: dict[str, nn.Parameter]) -> None:
    """After the first backward pass: a trainable that no gradient reaches would never learn."""
    lost = [name for name, p in parameters.items() if p.grad is None]
    if lost:
        raise ConfigError(f"fit: no gradient reached {len(lost)} trainables: {', '.join(lost)}")
