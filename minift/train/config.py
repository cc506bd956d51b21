"""The options of a training run; each is a flag of the training commands by the same name."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from minift.errors import ConfigError
from minift.kernels.choice import KERNELS
from minift.train.optimizer import SCHEDULES

ORDERS = ("auto", "random", "length")
GRAPHS = ("off", "on")
LEAST = 30  # updates that change something, where neither steps nor epochs are given
EVALUATIONS, SHARE = 8, 0.1  # of a run that does not say: how many, and the most time they take


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, how carefully to train. A step is one update of the weights.

        steps, epochs        how long: updates, or passes over the rows; not both. Default: one
                             epoch, and LEAST updates at least
        batch_size           rows a step
        micro_batch_tokens   tokens of one forward and backward pass, padding counted; memory only:
                             the gradient of a step does not depend on it
        lr, schedule, warmup the highest rate, its course, and the share of the steps (0 to 1) over
                             which it rises; an lr of None is the method's own
        weight_decay, beta1, beta2, eps
                             AdamW's (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2)
        clip                 the largest L2 norm of a step's gradient; 0: no clipping (Pascanu et
                             al. 2013, arXiv:1211.5063, section 3.2)
        order                which rows share a step (data/batches.py)
        eval_every           steps between evaluations of the held-out rows; 0: at the end only
        checkpointing        recompute activations in the backward pass (Chen et al. 2016,
                             arXiv:1604.06174)
        kernels, graph       which kernels run; whether a step is replayed as a CUDA graph
        seed                 of the order of the rows and of dropout
        threads              CPU threads; None: one a core

    Raises ConfigError with every field that is out of range.
    """

    steps: int | None = field(
        default=None, metadata={"help": "updates; default: one epoch, and 30 at least"}
    )
    epochs: float | None = field(default=None, metadata={"help": "passes over the data instead"})
    batch_size: int = field(default=16, metadata={"help": "rows an update"})
    micro_batch_tokens: int = field(
        default=4096, metadata={"help": "tokens at once; less: less memory, the same gradient"}
    )
    lr: float | None = field(
        default=None, metadata={"help": "highest learning rate; default: the method's own"}
    )
    schedule: str = field(default="linear", metadata={"help": "linear, cosine or constant"})
    warmup: float = field(default=0.05, metadata={"help": "share of the steps that warm up"})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW's decay"})
    beta1: float = field(default=0.9, metadata={"help": "AdamW's memory of the gradient"})
    beta2: float = field(default=0.999, metadata={"help": "AdamW's memory of its square"})
    eps: float = field(default=1e-8, metadata={"help": "AdamW's floor"})
    clip: float = field(default=1.0, metadata={"help": "largest gradient norm; 0: no clipping"})
    order: str = field(
        default="auto",
        metadata={
            "help": "of the rows: random; length: those of like length together; auto: random "
            "where rows can be packed"
        },
    )
    eval_every: int | None = field(
        default=None,
        metadata={
            "help": "steps between evaluations; 0: at the end; default: about 8 a run, fewer where "
            "they would cost over a tenth of it"
        },
    )
    checkpointing: bool = field(
        default=False, metadata={"help": "recompute activations: less memory, slower"}
    )
    kernels: str = field(
        default="auto",
        metadata={
            "help": "auto: fused, in Triton on a GPU; triton; torch: fused without Triton; "
            "reference: readable"
        },
    )
    graph: str = field(
        default="off",
        metadata={"help": "on: each step is one CUDA graph of fixed shape; SFT on a GPU"},
    )
    seed: int = field(default=0, metadata={"help": "of the order of the data and of dropout"})
    threads: int | None = field(default=None, metadata={"help": "default: one a core"})

    def __post_init__(self) -> None:
        problems = []

        def rule(name: str, good: bool, allowed: str) -> None:
            if not good:
                problems.append(f"{name}: found {getattr(self, name)}, allowed {allowed}")

        rule("steps", self.steps is None or self.steps >= 1, "a whole number from 1")
        rule("epochs", self.epochs is None or 0 < self.epochs < math.inf, "a number above 0")
        rule("batch_size", self.batch_size >= 1, "a whole number from 1")
        rule("micro_batch_tokens", self.micro_batch_tokens >= 1, "a whole number from 1")
        rule("lr", self.lr is None or 0 < self.lr < math.inf, "a number above 0")
        rule("schedule", self.schedule in SCHEDULES, ", ".join(SCHEDULES))
        rule("warmup", 0 <= self.warmup <= 1, "from 0 to 1")
        rule("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more")
        rule("beta1", 0 <= self.beta1 < 1, "0 or more and below 1")
        rule("beta2", 0 <= self.beta2 < 1, "0 or more and below 1")
        rule("eps", 0 < self.eps < math.inf, "a number above 0")
        rule("clip", 0 <= self.clip < math.inf, "0 or more")
        rule("order", self.order in ORDERS, ", ".join(ORDERS))
        rule("eval_every", self.eval_every is None or self.eval_every >= 0, "0 or more")
        rule("kernels", self.kernels in KERNELS, ", ".join(KERNELS))
        rule("graph", self.graph in GRAPHS, ", ".join(GRAPHS))
        rule("threads", self.threads is None or self.threads >= 1, "a whole number from 1")
        if self.steps is not None and self.epochs is not None:
            problems.append("give steps or epochs, not both")
        if self.graph == "on" and (self.checkpointing or self.kernels == "reference"):
            found = "checkpointing" if self.checkpointing else "kernels reference"
            problems.append(f"graph: found on with {found}, allowed without")
        if problems:
            raise ConfigError("; ".join(problems))

    def resolved_steps(self, rows: int) -> int:
        """The steps of a run over so many rows: as given, else one epoch and LEAST at least."""
        per_epoch = math.ceil(rows / self.batch_size)
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return max(1, math.ceil(per_epoch * self.epochs))
        return max(LEAST, per_epoch)

    def resolved_eval_every(self, rows: int, held_out: int) -> int:
        """Steps between evaluations: as given, else enough to find the best step at little cost.

        A row takes about three times as long to train on as to evaluate.
        """
        if self.eval_every is not None or not held_out:
            return self.eval_every or 0
        steps = self.resolved_steps(rows)
        count = min(EVALUATIONS, int(SHARE * 3 * steps * self.batch_size / held_out))
        return math.ceil(steps / count) if count > 1 else 0
