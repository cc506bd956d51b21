"""The loop: batches in, optimizer steps out, one file a reader can follow from top to bottom.

The loss of an optimizer step is the sum over all its micro-batches divided once by all their
target tokens, so that cutting a step into pieces changes nothing.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from minift import __version__
from minift.checkpoints.finite import is_finite
from minift.checkpoints.tensor_names import file_names
from minift.data.batches import row_batches
from minift.errors import ConfigError, FormatError, notice
from minift.kernels.choice import KERNELS, using, word
from minift.kernels.quantized.linear import base_of, numbers, quantized
from minift.model.transformer import Transformer
from minift.peft import methods
from minift.peft.adapters import active, config_of, known, trainable
from minift.runtime import numerics, peak_memory, tuned
from minift.storage import free_space
from minift.tokenizers.text_format import TextFormat
from minift.train.evaluate import held_out_loss
from minift.train.kept import Diverged, Keeper, finite, interruptible
from minift.train.objectives import Counted, Objective
from minift.train.optimizer import SCHEDULES, AdamW, learning_rate
from minift.train.run_folder import claimed, clear

ORDERS = ("auto", "random", "length")
GRAPHS = ("off", "on")
LEAST = 30  # updates that change something, where neither steps nor epochs are given
RECORDED = 4096  # evaluations in run.json, which stays small; metrics.jsonl has all
EVALUATIONS, SHARE = 8, 0.1  # of a run that does not say: how many, and the most time they take


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, how carefully. A step is one update of the weights."""

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
        """As told; else one epoch, and on few rows as many as change something."""
        per_epoch = math.ceil(rows / self.batch_size)
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            return max(1, math.ceil(per_epoch * self.epochs))
        return max(LEAST, per_epoch)

    def resolved_eval_every(self, rows: int, held_out: int) -> int:
        """As told; else often enough to find the best step, while it costs little.

        A row takes about three times as long to train on as to evaluate.
        """
        if self.eval_every is not None or not held_out:
            return self.eval_every or 0
        steps = self.resolved_steps(rows)
        count = min(EVALUATIONS, int(SHARE * 3 * steps * self.batch_size / held_out))
        return math.ceil(steps / count) if count > 1 else 0


class Step(nn.Module):
    """Model and objective as one module whose forward returns the loss sum: what DDP wraps."""

    def __init__(self, model: Transformer, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Counted) -> Tensor:
        return self.objective.loss_sum(self.model, batch)


@dataclass
class Run:
    """What a run did. `losses` has the mean loss a target token of every step, in nats."""

    config: TrainConfig
    planned: int  # steps
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out loss)
    best_step: int | None = None  # of the lowest held-out loss
    kept_step: int | None = None  # whose weights the model and adapter/ have
    skipped: int = 0  # steps without a target, or not finite
    tokens: int = 0  # read, padding left out
    seconds: float = 0.0
    ended: str = "unfinished"  # or finished, interrupted, diverged, failed: WHY
    out: Path | None = None

    @property
    def steps(self) -> int:
        """Those that were taken."""
        return len(self.losses)

    @property
    def interrupted(self) -> bool:
        return self.ended == "interrupted"

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Progress:
    """One line of metrics.jsonl, and what a screen shows."""

    step: int
    steps: int
    loss: float
    lr: float
    norm: float
    tokens: int
    targets: int
    seconds: float
    held_out_loss: float | None = None


@dataclass(frozen=True)
class Planned:
    """A step before it is taken."""

    step: int
    lr: float
    indices: list[int]
    due: bool  # an evaluation follows


@dataclass(frozen=True)
class Taken:
    """A step after it."""

    step: int
    lr: float
    loss: float  # mean of its targets
    norm: float
    tokens: int
    targets: int
    settled: bool = True  # the weights are as it left them: no later step has begun

    @property
    def good(self) -> bool:
        """Whether it changed the weights."""
        return self.targets > 0 and math.isfinite(self.loss) and math.isfinite(self.norm)


def fit(
    model: Transformer,
    objective: Objective,
    config: TrainConfig = TrainConfig(),
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    watch: Callable[[Progress], object] = lambda progress: None,
) -> Run:
    """Train what is trainable. With `out`, a run folder: run.json, metrics.jsonl, adapter/.

    `watch` hears of every step. Where rows are held out, the weights of the step with the lowest
    loss on them are kept: in the model, and in adapter/ from the moment they are found. So neither
    an error nor a `kill -9` costs them. Ctrl-C, SIGTERM and SIGHUP end the run after the step at
    hand, evaluated, with the best kept; a second Ctrl-C at once, with what is on disk. An error
    carries a note that says where the best adapter is and of which step; without an evaluation the
    last good weights are saved, if they can be. `Run` and run.json say how it ended, how many steps
    were taken and planned, and of which step the weights are.

    Without steps and epochs it is one epoch, and LEAST updates at least.

    Raises ConfigError where nothing is trainable or `out` holds a run, FormatError where a weight
    is NaN or infinite before the first step, Diverged after three steps in a row whose loss or
    gradient was not finite. With `graph` on, all of that is a step late, since a step is read when
    the next one is under way; evaluation and the end are not.

    Full training, of a model without an adapter, needs an lr, and `out` gets its records alone:
    `minift.save` writes the weights. No other run writes `out` until this one ends.
    """
    with nullcontext() if out is None else claimed(out, overwrite) as folder:
        return train(model, objective, config, folder, watch)


def train(
    model: Transformer,
    objective: Objective,
    config: TrainConfig,
    out: Path | None,
    watch: Callable[[Progress], object],
) -> Run:
    """`fit`, in a folder that is ours."""
    parameters = trainable(model)
    if not parameters:
        raise ConfigError(
            "fit: nothing is trainable: minift.attach a method first, or load_adapter with "
            "trainable=True"
        )
    if config.lr is None and active(model) is None:
        raise ConfigError("fit: nothing attached: minift.attach, or give lr for full training")
    objective.check(model)  # what it finds may change the number of its rows
    steps = config.resolved_steps(objective.rows)
    rate = methods.learning_rate(model) if config.lr is None else config.lr
    check_finite(model)
    if config.graph == "on":
        from minift.train import captured

        captured.check(model, objective, parameters)
    summary = objective.summary()  # once: the data may be gone when the run ends
    held = summary.get("held_out_chunks", summary.get("held_out_rows"))
    every = config.resolved_eval_every(objective.rows, held if isinstance(held, int) else 0)
    config = replace(config, lr=rate, eval_every=every)
    if out is not None:  # now, not after hours of training
        free_space(out, 2 * sum(p.numel() * p.element_size() for p in parameters.values()))
        if active(model) is None:
            notice(out, "no weights are written here, as no adapter is attached: minift.save them")
    run = Run(config, steps, out=out)
    remember_texts(model, summary)
    optimizer = AdamW(
        parameters,
        methods.learning_ratios(model),
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        decay=config.weight_decay,
    )
    step_module = Step(model, objective)
    torch.manual_seed(config.seed)  # dropout
    was, model.checkpointing = (model.training, model.checkpointing), config.checkpointing
    step_module.train()
    begin, bad = time.perf_counter(), 0
    try:
        # "auto" leaves the choice to whoever called.
        choice = nullcontext() if config.kernels == "auto" else using(config.kernels)
        weight = model.embed.weight
        here = tuned(config.threads, weight.device)
        with choice, here, interruptible() as interrupted:

            def facts() -> dict[str, object]:
                return {
                    "data": summary,
                    "numerics": numerics(weight.dtype, weight.device, word(weight)),
                }

            keeper = Keeper(model, parameters, run, lambda: record(model, run) | facts())
            work = planned(objective, config, steps, rate)
            if config.graph == "on":
                one_by_one = captured.steps(
                    work, model, objective, optimizer, parameters, config, interrupted.is_set
                )
            else:
                one_by_one = ordinary(work, step_module, optimizer, parameters, config)
            with keeper.whatever_happens():
                for taken in one_by_one:
                    step, held_out = taken.step + 1, None
                    if out is not None and not run.losses:
                        clear(out)  # not before: an older run outlives what fails in the first step
                    keeper.settled = taken.settled
                    if taken.good:
                        bad, keeper.good = 0, step
                    else:  # the weights stay as they are
                        run.skipped += 1
                        bad += taken.targets > 0
                    run.losses.append(taken.loss)
                    run.norms.append(taken.norm)
                    run.tokens += taken.tokens
                    run.seconds = time.perf_counter() - begin
                    last = step == steps or interrupted.is_set()
                    if taken.settled and due(config, taken.step, last):
                        held_out = held_out_loss(model, objective, config.micro_batch_tokens)
                    if held_out is not None:
                        keeper.evaluated(step, held_out)
                    progress = Progress(
                        step, steps, taken.loss, taken.lr, taken.norm, taken.tokens, taken.targets,
                        run.seconds, held_out,
                    )  # fmt: skip
                    keeper.log(progress)
                    watch(progress)
                    if bad == 3:
                        raise Diverged(
                            f"step {step}: the loss or the gradient was not finite three times in "
                            f"a row (loss {taken.loss}, gradient norm {taken.norm}); try an lr "
                            f"below {rate}"
                        )
                    if interrupted.is_set() and taken.settled:
                        break
                keeper.finish(interrupted.is_set())
    finally:
        optimizer.release()
        model.train(was[0])
        model.checkpointing = was[1]
    return run


def remember_texts(model: Transformer, summary: Mapping[str, object]) -> None:
    """How the objective makes its texts goes with the adapter, or with the model."""
    name, said = active(model), summary.get("texts")
    if said is None:
        return
    texts = TextFormat.from_json(said, "fit")
    if name is None:
        model.text_format = texts
    else:
        known(model, name, "fit").texts[name] = texts


def planned(
    objective: Objective, config: TrainConfig, steps: int, rate: float
) -> Iterator[Planned]:
    """What every step will do; rows are tokenized as they come up."""
    warmup = round(config.warmup * steps)
    for step, indices in zip(range(steps), order(objective, config), strict=False):
        lr = learning_rate(config.schedule, rate, warmup, steps, step)
        yield Planned(step, lr, indices, due(config, step, step + 1 == steps))


def ordinary(
    work: Iterator[Planned],
    step_module: Step,
    optimizer: AdamW,
    parameters: dict[str, nn.Parameter],
    config: TrainConfig,
) -> Iterator[Taken]:
    """Step after step, each taken before it is told."""
    for one in work:
        optimizer.set_rate(one.lr)
        loss, tokens, targets = gradients(step_module, one.indices, config.micro_batch_tokens)
        if one.step == 0:
            check_gradients(parameters)
        norm = optimizer.clip(config.clip)
        taken = Taken(one.step, one.lr, loss, norm, tokens, targets)
        if taken.good:
            optimizer.step()
        optimizer.zero_grad()
        yield taken


def order(objective: Objective, config: TrainConfig) -> Iterator[list[int]]:
    """The rows of every optimizer step, without end: a pure function of the seed."""
    alike = config.order == "length" or (config.order == "auto" and not objective.packs)
    epoch = 0
    while True:
        for indices in row_batches(
            objective.rows, config.batch_size, config.seed, epoch, objective.lengths, alike=alike
        ):
            yield [int(i) for i in indices]
        epoch += 1


def gradients(step: Step, indices: list[int], micro_batch_tokens: int) -> tuple[float, int, int]:
    """Accumulate one optimizer step's gradients: (mean loss a target, tokens, targets)."""
    batches = step.objective.batches(indices, micro_batch_tokens)
    targets = sum(batch.count for batch in batches)
    total = 0.0
    for batch in batches:
        if batch.count == 0:
            continue
        loss = step(batch)  # a sum
        (loss / targets).backward()
        total += float(loss.detach())
    tokens = sum(batch.real for batch in batches)
    return total / max(1, targets), tokens, targets


def check_finite(model: Transformer) -> None:
    """Every weight is a number: one that is none makes the loss none. Named as files name it."""
    places = ((f"{path}.weight", linear.weight) for path, linear in quantized(model))
    bad = [
        name for name, tensor in chain(model.named_parameters(), places) if not is_finite(tensor)
    ]
    if bad:
        name = file_names(model.config).get(bad[0], bad[0])
        found = "NaN or infinity" + (f", as in {len(bad) - 1:,} more" if len(bad) > 1 else "")
        where = f'tensor "{name}"'
        raise FormatError(model.source or "fit", where, found, "finite weights", "out-of-range")


def check_gradients(parameters: dict[str, nn.Parameter]) -> None:
    """After the first backward pass: a trainable that no gradient reaches would never learn."""
    lost = [name for name, p in parameters.items() if p.grad is None]
    if lost:
        raise ConfigError(f"fit: no gradient reached {len(lost)} trainables: {', '.join(lost)}")


def due(config: TrainConfig, step: int, last: bool) -> bool:
    every = config.eval_every or 0
    return last or (every > 0 and (step + 1) % every == 0)


def record(model: Transformer, run: Run) -> dict[str, object]:
    """What run.json says."""
    method = config_of(model)
    methods = {type(method).__name__: asdict(method)} if method is not None else {}  # type: ignore[call-overload]
    counts = {name: p.numel() for name, p in trainable(model).items()}
    return {
        "model": model.source,
        "methods": methods,
        "trainable": sum(counts.values()),
        "parameters": numbers(model),
        "base": base_of(model) or "dense",
        "config": asdict(run.config),
        "ended": run.ended,
        "steps": run.steps,
        "planned_steps": run.planned,
        "final_loss": finite(run.losses[-1]) if run.losses else None,
        "held_out": [{"step": s, "loss": finite(x)} for s, x in run.evaluations[-RECORDED:]],
        "best_step": run.best_step,
        "kept_step": run.kept_step,
        "skipped_steps": run.skipped,
        "tokens": run.tokens,
        "seconds": round(run.seconds, 3),
        "peak_memory_bytes": peak_memory(),
        "interrupted": run.interrupted,
        "versions": {
            "minift": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
        "device": str(model.embed.weight.device),
        "machine": platform.machine(),
    }
