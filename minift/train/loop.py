"""The training loop: rows in, optimizer steps out, one file to read from top to bottom.

check     everything that the model, the data and the options alone decide
plan      the rows and the learning rate of every step (`order`, `plan_steps`)
step      forward and backward passes, clipping, the update (step.py)
evaluate  the held-out loss; the weights of the best step are kept (keeper.py)
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

import torch
from torch import nn

from minift.data.batches import row_batches
from minift.errors import ConfigError, FormatError
from minift.kernels.choice import using, word
from minift.kernels.quantized.linear import quantized
from minift.model.finite import is_finite
from minift.model.transformer import Transformer
from minift.peft import methods
from minift.peft.adapters import active, known, trainable
from minift.runtime import numerics, tuned
from minift.train.config import TrainConfig
from minift.train.evaluation.loss import held_out_loss
from minift.train.keeper import Diverged, Keeper, catch_signals
from minift.train.objectives.protocol import Objective
from minift.train.optimizer import AdamW, learning_rate
from minift.train.step import EagerStep, LossModule, OptimizerStep, PlannedStep, Progress, Run


def fit(
    model: Transformer,
    objective: Objective,
    config: TrainConfig = TrainConfig(),
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    watch: Callable[[Progress], object] = lambda progress: None,
) -> Run:
    """Train every parameter of `model` that requires a gradient, in place, on the objective's rows.

    `out` is the run's folder: run.json, metrics.jsonl (a line a step), and what is trained, as
    adapter/ or, where no adapter is active, as model/, a folder for `minift.load`. No other run
    writes `out` until this one ends; an older run in it is replaced with `overwrite`, and anything
    else stays. Without `out` nothing is written.

    `watch` is called after every step. Where rows are held out, the weights of the step with the
    lowest loss on them are kept: in the model, and in `out` from the moment they are found. So
    neither an error nor a `kill -9` costs them. Ctrl-C, SIGTERM and SIGHUP end the run after the
    step at hand, evaluated, with the best weights kept; a second Ctrl-C ends it at once, with what
    is on disk. An error carries a note that says where the best weights are and of which step;
    without an evaluation the last good weights are saved, if they can be. `Run` and run.json say
    how the run ended, how many steps were taken and planned, and of which step the weights are.
    Losses are means a target, in nats; norms are L2 norms before clipping.

    Training without an adapter, of a whole model or of its head alone, needs an lr.

    Raises ConfigError where nothing is trainable, where `config` does not fit the model or where
    `out` holds a run or a file that minift did not write; DataError where a row cannot be read;
    FormatError where a weight is NaN or infinite before the first step; StorageError where the disk
    refuses; Diverged after three steps in a row whose loss or gradient was not finite. With `graph`
    on, a step is read when the next one is under way, so all of that is a step late; evaluation and
    the end are not.
    """
    if out is None:
        return train(model, objective, config, None, watch)
    from minift.train.run_folder import claim

    with claim(out, overwrite) as folder:
        return train(model, objective, config, folder, watch)


def train(
    model: Transformer,
    objective: Objective,
    config: TrainConfig,
    out: Path | None,
    watch: Callable[[Progress], object],
) -> Run:
    """`fit`, in a folder that no other run writes."""
    parameters = trainable(model)
    check_method(model, config, parameters)
    objective.check(model)  # it may change the number of rows
    steps = config.resolved_steps(objective.rows)
    rate = methods.learning_rate(model) if config.lr is None else config.lr
    check_finite(model)
    if config.graph == "on":
        from minift.train import cuda_graph

        cuda_graph.check(model, objective, parameters)
    summary = objective.summary()  # once: the data may be gone when the run ends
    held = summary.get("held_out_chunks", summary.get("held_out_rows"))
    every = config.resolved_eval_every(objective.rows, held if isinstance(held, int) else 0)
    config = replace(config, lr=rate, eval_every=every)
    run, files = Run(config, steps, out=out), None
    if out is not None:
        from minift.train.run_folder import clear, open_files

        def facts() -> dict[str, object]:
            here = numerics(weight.dtype, weight.device, word(weight))
            return {"data": summary, "numerics": here}

        files = open_files(out, model, run, objective.tokenizer, facts)
    remember_texts(model, summary)
    step = new_step(model, objective, parameters, config)
    weight = model.embed.weight
    training, checkpointing = model.training, model.checkpointing
    torch.manual_seed(config.seed)  # of dropout where no key decides (kernels/dropout.py)
    begin, bad_in_a_row = time.perf_counter(), 0
    started: deque[PlannedStep] = deque()  # whose result is not read yet
    try:
        model.train()
        model.checkpointing = config.checkpointing
        # "auto" leaves the kernels to the caller's choice.
        kernels = nullcontext() if config.kernels == "auto" else using(config.kernels)
        with kernels, tuned(config.threads, weight.device), catch_signals() as interrupted:
            keeper = Keeper(parameters, run, files)
            with keeper.save_on_error():
                for planned in plan_steps(objective, config, steps, rate):
                    step.start(planned.rows, planned.lr)
                    started.append(planned)
                    # Read what is due: all of it before an evaluation, and once interrupted.
                    while started and (
                        len(started) > step.overlap or planned.evaluate or interrupted.is_set()
                    ):
                        done, result = started.popleft(), step.result()
                        number, held_out = done.step + 1, None
                        if out is not None and not run.losses:
                            clear(out)  # not before: an older run outlives a failing first step
                        keeper.synced = not started  # the weights are those of this step
                        run.add(result, time.perf_counter() - begin)
                        if result.changed_weights:
                            bad_in_a_row, keeper.good = 0, number
                        else:  # the weights stay as they are
                            bad_in_a_row += result.num_targets > 0
                        if keeper.synced and (done.evaluate or interrupted.is_set()):
                            held_out = held_out_loss(model, objective, config.micro_batch_tokens)
                        if held_out is not None:
                            keeper.keep_if_best(number, held_out)
                        progress = Progress(
                            number, steps, result.loss, done.lr, result.norm, result.num_tokens,
                            result.num_targets, run.seconds, held_out,
                        )  # fmt: skip
                        keeper.log(progress)
                        watch(progress)
                        if bad_in_a_row == 3:
                            raise Diverged(
                                f"step {number}: the loss or the gradient was not finite three "
                                f"times in a row (loss {result.loss}, gradient norm {result.norm});"
                                f" try an lr below {rate}"
                            )
                    if interrupted.is_set() and not started:
                        break
                keeper.finish(interrupted.is_set())
    finally:
        step.release()
        model.train(training)
        model.checkpointing = checkpointing
    return run


def new_step(
    model: Transformer,
    objective: Objective,
    parameters: dict[str, nn.Parameter],
    config: TrainConfig,
) -> OptimizerStep:
    """The step that the options ask for, with its optimizer."""
    ratios, betas = methods.learning_ratios(model), (config.beta1, config.beta2)
    if config.graph == "on":
        from minift.train.cuda_graph import GraphAdamW, GraphStep

        optimizer = GraphAdamW(
            parameters, ratios, betas=betas, eps=config.eps, decay=config.weight_decay
        )
        return GraphStep(model, objective, optimizer, parameters, config)  # type: ignore[arg-type]
    return EagerStep(
        LossModule(model, objective),
        objective,
        AdamW(parameters, ratios, betas=betas, eps=config.eps, decay=config.weight_decay),
        parameters,
        config,
    )


def plan_steps(
    objective: Objective, config: TrainConfig, steps: int, rate: float, start_step: int = 0
) -> Iterator[PlannedStep]:
    """What every step from `start_step` on will do; its rows are tokenized as they come up."""
    warmup, every = round(config.warmup * steps), config.eval_every or 0
    for step, rows in zip(
        range(start_step, steps), order(objective, config, start_step), strict=False
    ):
        lr = learning_rate(config.schedule, rate, warmup, steps, step)
        evaluate = step + 1 == steps or (every > 0 and (step + 1) % every == 0)
        yield PlannedStep(step, lr, rows, evaluate)


def order(objective: Objective, config: TrainConfig, start_step: int = 0) -> Iterator[list[int]]:
    """The rows of every step from `start_step` on, without end: a pure function of the seed.

    Steps before the window of `start_step` are skipped without tokenizing a row.
    """
    group = config.order == "length" or (config.order == "auto" and not objective.packs)

    def lengths(indices: list[int]) -> list[int]:
        objective.load_window(indices)
        return list(objective.lengths(indices)) if group else []

    first, skip = divmod(start_step, -(-objective.rows // config.batch_size))
    for epoch in count(first):
        for rows in row_batches(
            objective.rows, config.batch_size, config.seed, epoch, lengths,
            group_by_length=group, start=skip if epoch == first else 0,
        ):  # fmt: skip
            yield [int(i) for i in rows]


def check_method(
    model: Transformer, config: TrainConfig, parameters: Mapping[str, nn.Parameter]
) -> None:
    """Raise ConfigError where nothing would be trained, or no learning rate is known."""
    if not parameters:
        raise ConfigError(
            "fit: nothing is trainable: minift.attach a method first, or load_adapter with "
            "trainable=True"
        )
    if config.lr is None and active(model) is None:
        raise ConfigError("fit: nothing attached: minift.attach, or give lr for full training")


def check_finite(model: Transformer) -> None:
    """Every weight is a number: one that is none makes the loss none. Named as files name it."""
    places = ((f"{path}.weight", linear.weight) for path, linear in quantized(model))
    bad = [
        name for name, tensor in chain(model.named_parameters(), places) if not is_finite(tensor)
    ]
    if bad:
        from minift.checkpoints.tensor_names import file_names

        name = file_names(model.config).get(bad[0], bad[0])
        found = "NaN or infinity" + (f", as in {len(bad) - 1:,} more" if len(bad) > 1 else "")
        where = f'tensor "{name}"'
        raise FormatError(model.source or "fit", where, found, "finite weights", "out-of-range")


def remember_texts(model: Transformer, summary: Mapping[str, object]) -> None:
    """Keep how the objective makes its texts with the adapter, or with the model."""
    name, said = active(model), summary.get("texts")
    if said is None:
        return
    from minift.tokenizers.text_format import TextFormat

    texts = TextFormat.from_json(said, "fit")
    if name is None:
        model.text_format = texts
    else:
        known(model, name, "fit").texts[name] = texts
