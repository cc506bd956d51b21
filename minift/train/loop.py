"""The loop: batches in, optimizer steps out, one file a reader can follow from top to bottom.

The loss of an optimizer step is the sum over all its micro-batches divided once by all their
target tokens, so that cutting a step into pieces changes nothing.
"""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from minift import __version__
from minift.checkpoints.finite import is_finite
from minift.checkpoints.save import as_json
from minift.checkpoints.tensor_names import file_names
from minift.data.batches import row_batches
from minift.errors import ConfigError, FormatError
from minift.kernels.choice import KERNELS, using, word
from minift.kernels.quantized.linear import base_of, numbers, quantized
from minift.model.transformer import Transformer
from minift.peft import methods
from minift.peft.adapters import active, config_of, known, trainable
from minift.peft.files import save_adapter
from minift.runtime import numerics, peak_memory, tuned
from minift.storage import append_line, free_space, write_file
from minift.tokenizers.text_format import TextFormat
from minift.train.evaluate import held_out_loss
from minift.train.objectives import Counted, Objective
from minift.train.optimizer import SCHEDULES, AdamW, learning_rate
from minift.train.run_folder import claimed, clear, make_room

ORDERS = ("auto", "random", "length")
GRAPHS = ("off", "on")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how fast, how carefully. A step is one update of the weights."""

    steps: int | None = field(default=None, metadata={"help": "updates; default: one epoch"})
    epochs: float | None = field(default=None, metadata={"help": "passes over the data instead"})
    batch: int = field(default=16, metadata={"help": "rows an update"})
    micro_tokens: int = field(
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
    eval_every: int = field(
        default=0, metadata={"help": "steps between evaluations; 0: at the end"}
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
        rule("batch", self.batch >= 1, "a whole number from 1")
        rule("micro_tokens", self.micro_tokens >= 1, "a whole number from 1")
        rule("lr", self.lr is None or 0 < self.lr < math.inf, "a number above 0")
        rule("schedule", self.schedule in SCHEDULES, ", ".join(SCHEDULES))
        rule("warmup", 0 <= self.warmup <= 1, "from 0 to 1")
        rule("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more")
        rule("beta1", 0 <= self.beta1 < 1, "0 or more and below 1")
        rule("beta2", 0 <= self.beta2 < 1, "0 or more and below 1")
        rule("eps", 0 < self.eps < math.inf, "a number above 0")
        rule("clip", 0 <= self.clip < math.inf, "0 or more")
        rule("order", self.order in ORDERS, ", ".join(ORDERS))
        rule("eval_every", self.eval_every >= 0, "0 or more")
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
        per_epoch = math.ceil(rows / self.batch)
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil(per_epoch * (self.epochs or 1.0)))


class Diverged(RuntimeError):
    """A guard rail stopped training: the loss or the gradient was not finite, again and again."""


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
    steps: int
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out loss)
    best_step: int | None = None
    skipped: int = 0  # steps without a target, or not finite
    tokens: int = 0  # read, padding left out
    seconds: float = 0.0
    interrupted: bool = False
    out: Path | None = None

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
    config: TrainConfig,
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    watch: Callable[[Progress], object] = lambda progress: None,
) -> Run:
    """Train what is trainable. With `out`, a run folder: run.json, metrics.jsonl, adapter/.

    `watch` hears of every step. Ctrl-C ends after the step at hand, with everything saved. Raises
    ConfigError where nothing is trainable or `out` holds a run, FormatError where a weight is NaN
    or infinite before the first step, Diverged after three steps in a row
    whose loss or gradient was not finite. With `graph` on, all of that is a step late, since a step
    is read when the next one is under way; evaluation and the end are not. No other run writes
    `out` until this one ends.
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
        raise ConfigError("fit: nothing is trainable; attach a method first")
    objective.check(model)  # what it finds may change the number of its rows
    steps = config.resolved_steps(objective.rows)
    rate = methods.learning_rate(model) if config.lr is None else config.lr
    config = replace(config, lr=rate)
    check_finite(model)
    if config.graph == "on":
        from minift.train import captured

        captured.check(model, objective, parameters)
    if out is not None:  # now, not after hours of training
        free_space(out, 2 * sum(p.numel() * p.element_size() for p in parameters.values()))
        clear(out)
    run = Run(config, steps, out=out)
    remember_texts(model, objective)
    optimizer = AdamW(
        parameters,
        methods.learning_ratios(model),
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        decay=config.weight_decay,
    )
    step_module = Step(model, objective)
    best: dict[str, Tensor] | None = None
    best_loss, bad = math.inf, 0
    torch.manual_seed(config.seed)  # dropout
    was, model.checkpointing = (model.training, model.checkpointing), config.checkpointing
    step_module.train()
    begin = time.perf_counter()
    try:
        # "auto" leaves the choice to whoever called.
        choice = nullcontext() if config.kernels == "auto" else using(config.kernels)
        weight = model.embed.weight
        here = tuned(config.threads, weight.device)
        with choice, here, interruptible() as interrupted:
            work = planned(objective, config, steps, rate)
            if config.graph == "on":
                one_by_one = captured.steps(
                    work, model, objective, optimizer, parameters, config, interrupted.is_set
                )
            else:
                one_by_one = ordinary(work, step_module, optimizer, parameters, config)
            for taken in one_by_one:
                if taken.good:
                    bad = 0
                else:  # the weights stay as they are
                    run.skipped += 1
                    bad += taken.targets > 0
                run.losses.append(taken.loss)
                run.norms.append(taken.norm)
                run.tokens += taken.tokens
                run.seconds = time.perf_counter() - begin
                step, held_out = taken.step, None
                last = step + 1 == steps or interrupted.is_set()
                if taken.settled and due(config, step, last):
                    held_out = held_out_loss(model, objective, config.micro_tokens)
                if held_out is not None:
                    run.evaluations.append((step + 1, held_out))
                    if held_out < best_loss:
                        best_loss, run.best_step = held_out, step + 1
                        best = {n: p.detach().clone() for n, p in parameters.items()}
                progress = Progress(
                    step + 1, steps, taken.loss, taken.lr, taken.norm, taken.tokens, taken.targets,
                    run.seconds, held_out,
                )  # fmt: skip
                if run.out is not None:
                    append_line(run.out / "metrics.jsonl", json.dumps(asdict(progress)))
                watch(progress)
                if bad == 3:
                    raise Diverged(
                        f"step {step + 1}: the loss or the gradient was not finite three times in "
                        f"a row (loss {taken.loss}, gradient norm {taken.norm}); try an lr below "
                        f"{rate}"
                    )
                if interrupted.is_set() and taken.settled:
                    run.interrupted = True
                    break
            if best is not None and not run.interrupted:
                restore(parameters, best)
            if run.out is not None:
                if active(model) is not None:
                    make_room(run.out / "adapter")
                    save_adapter(model, run.out / "adapter", overwrite=True)
                facts = {
                    "data": objective.summary(),
                    "numerics": numerics(weight.dtype, weight.device, word(weight)),
                }
                write_file(run.out / "run.json", as_json(record(model, run) | facts))
    finally:
        optimizer.release()
        model.train(was[0])
        model.checkpointing = was[1]
    return run


def remember_texts(model: Transformer, objective: Objective) -> None:
    """How the objective makes its texts goes with the adapter, wherever it is saved."""
    name, said = active(model), objective.summary().get("texts")
    if name is not None and said is not None:
        known(model, name, "fit").texts[name] = TextFormat.from_json(said, "fit")


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
        loss, tokens, targets = gradients(step_module, one.indices, config.micro_tokens)
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
            objective.rows, config.batch, config.seed, epoch, objective.lengths, alike=alike
        ):
            yield [int(i) for i in indices]
        epoch += 1


def gradients(step: Step, indices: list[int], micro_tokens: int) -> tuple[float, int, int]:
    """Accumulate one optimizer step's gradients: (mean loss a target, tokens, targets)."""
    batches = step.objective.batches(indices, micro_tokens)
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
    return last or (config.eval_every > 0 and (step + 1) % config.eval_every == 0)


@torch.no_grad()
def restore(parameters: dict[str, nn.Parameter], best: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(best[name])


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event; a second one ends the process as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def note(number: int, frame: object) -> None:
        event.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        "steps": len(run.losses),
        "final_loss": run.losses[-1] if run.losses else None,
        "held_out": [{"step": s, "loss": loss} for s, loss in run.evaluations],
        "best_step": run.best_step,
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
