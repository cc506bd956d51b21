"""What every training command does: open the data, the model and the adapter; then train.

A command brings a `Task`, which holds what is its own: which models it takes, how rows become
text, the objective. `open_training` does the rest, in one order for all of them; `run_training`
trains.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from minift.checkpoints.open import headers, load
from minift.cli.console import Console, duration, megabytes
from minift.cli.method import method_config
from minift.cli.models import base_line, base_name, headline, load_options
from minift.cli.options import Parsed
from minift.cli.progress import TrainingProgress
from minift.cli.run_report import passes_line, plan_line
from minift.data.read import Records
from minift.data.split import Rows
from minift.errors import ConfigError, FormatError, escaped
from minift.formats.overwrite import ADAPTER_FOLDER
from minift.interop.adapter_files import AnyStored, adapter_folder, load_adapter, stored
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.methods import attach
from minift.runtime import cores, peak_memory
from minift.study.plan import training_seconds
from minift.tokenizers.interface import Tokenizer
from minift.train.config import TrainConfig
from minift.train.loop import fit
from minift.train.objectives.classification import Classification
from minift.train.objectives.protocol import Objective
from minift.train.objectives.sft import SFT
from minift.train.run_folder import claim
from minift.train.step import Run

Data = Records | Rows
O = TypeVar("O", SFT, Classification)  # the objective


def in_run_folder(command: Callable[[Parsed, Console], int]) -> Callable[[Parsed, Console], int]:
    """A command that holds the lock of its --out folder from before loading until its end."""

    @wraps(command)
    def run(parsed: Parsed, console: Console) -> int:
        out, adapter = parsed.flag("out"), parsed.values.get("adapter")
        if adapter is not None and os.path.realpath(out) in (
            os.path.realpath(place) for place in run_folders(adapter)
        ):
            raise ConfigError(f"out: {out} is where --adapter comes from; choose another")
        with claim(out, parsed.flag("overwrite")):
            return command(parsed, console)

    return run


def run_folders(adapter: str) -> tuple[Path, ...]:
    """An adapter's folder and its run's folder, as named and with links resolved."""
    folders = [Path(adapter)]
    with suppress(ConfigError, FormatError):  # the command says what is wrong with it
        folders.append(adapter_folder(adapter))
    folders += [Path(os.path.realpath(folder)) for folder in folders]
    folders += [folder.parent for folder in folders if folder.name == ADAPTER_FOLDER]
    return tuple(folders)


@dataclass(frozen=True)
class TrainingOptions:
    """What is refused before any work: the config, and one of a method and an adapter."""

    config: TrainConfig
    method: Any | None = None  # the config of a method, to attach
    adapter: AnyStored | None = None  # of --adapter, to go on training

    @classmethod
    def of(cls, parsed: Parsed) -> TrainingOptions:
        config, method = parsed.config(TrainConfig), method_config(parsed)
        adapter = parsed.flag("adapter")
        return cls(config, method, stored(adapter) if adapter is not None else None)


class Task(Protocol[O]):
    """What a training command brings."""

    def check_base(self, name: str, config: ModelConfig) -> None:
        """Refuse a base model by its config, before the data are read."""

    def data(self, seed: int) -> tuple[Data, Data | None]:
        """The rows to train on and the held-out rows."""

    def prepare(self, model: Transformer, tokenizer: Tokenizer) -> Transformer:
        """Give a loaded model what the task needs: a head, a chat template."""

    def objective(
        self, model: Transformer, tokenizer: Tokenizer, train: Data, held: Data | None
    ) -> O: ...

    def data_line(self, objective: O, train: Data, held: Data | None) -> str:
        """How many rows there are, and of what kind."""

    def example(self, console: Console, objective: O) -> str:
        """One real row as the model reads it, the trained part marked."""


@dataclass(frozen=True)
class Training(Generic[O]):
    """A model with its adapter, and its data: ready for the first step."""

    config: TrainConfig
    model: Transformer
    tokenizer: Tokenizer
    objective: O
    train: Data
    held_out: Data | None


def open_training(
    parsed: Parsed,
    console: Console,
    task: Task[O],
    options: TrainingOptions,
    *,
    show_headline: bool = True,
) -> Training[O]:
    """Open all that training needs and print what it is. The cheapest refusals come first."""
    config, adapter = options.config, options.adapter
    name, how = base_name(parsed, adapter), load_options(parsed, adapter)
    task.check_base(name, headers(name).config)
    train, held = task.data(config.seed)
    model, tokenizer = load(name, **how)
    model = task.prepare(model, tokenizer)
    if show_headline:
        console.say(headline(config.threads))
    if how["base"] is not None:
        console.say(base_line(model))
    objective: O = task.objective(model, tokenizer, train, held)
    if adapter is not None:
        load_adapter(model, adapter.folder, trainable=True)
    else:
        attach(model, options.method, seed=config.seed)
    objective.check(model)
    console.say(task.data_line(objective, train, held))
    for line in (*objective.cut_lines(), task.example(console, objective)):
        console.say(f"             {line}")
    return Training(config, model, tokenizer, objective, train, held)


def run_training(
    parsed: Parsed, console: Console, training: Training[O], label: str = "train"
) -> Run:
    """`fit`: the plan before it, a progress bar beside it, what it really took after it."""
    model, objective, config = training.model, training.objective, training.config
    steps = config.resolved_steps(objective.rows)
    sample = objective.lengths(range(0, objective.rows, max(1, objective.rows // 200)))
    tokens = config.batch_size * sum(sample) / len(sample)
    plan = training_seconds(model, steps, tokens, config.threads)
    console.say(f"{label:<12} {plan_line(model, plan)}")
    if (remark := passes_line(config, objective.rows)) is not None:
        console.say(f"             {remark}")
    out, overwrite = parsed.flag("out"), parsed.flag("overwrite")
    watch = TrainingProgress(console, steps, plan, config.threads or cores())
    try:
        run = fit(model, objective, config, out, overwrite=overwrite, watch=watch)
    finally:
        watch.close()
    if not run.losses:
        raise ConfigError("training made no step")
    planned = "" if plan is None else f"plan {duration(plan)}, "
    console.say(
        f"             loss {run.losses[0]:.3f} to {run.losses[-1]:.3f} · "
        f"{run.tokens_per_second:,.0f} tokens/s · {planned}took "
        f"{duration(run.seconds)}, peak {megabytes(peak_memory())}"
    )
    return run


def marked_example(console: Console, objective: Objective, tokenizer: Tokenizer) -> str:
    """The first row as the model reads it, with the trained part marked."""
    ids, mask = objective.example()
    spans: list[tuple[int, list[int]]] = []
    for token, bit in zip(ids, mask, strict=True):
        if not spans or spans[-1][0] != bit:
            spans.append((bit, []))
        spans[-1][1].append(token)
    line, room = "", 220
    for bit, span in spans:
        text = escaped(tokenizer.decode(span, skip_special=False).replace("\n", "⏎"))
        if len(text) > room and not bit:
            text = text[: room // 2] + " … " + text[-room // 2 :]
        line += console.mark_trained(text) if bit else text
    return f"{line}   {console.mark_trained('trained')}"
