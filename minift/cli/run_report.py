"""The lines that a training run prints: its plan, what happened, what was kept, what to try."""

from __future__ import annotations

import math

from minift.checkpoints.hub.assets import peft_name
from minift.cli.console import duration
from minift.errors import one_line
from minift.interop.methods import FORMATS
from minift.kernels.choice import word
from minift.kernels.quantized.linear import base_of, numbers
from minift.model.transformer import Transformer
from minift.peft.adapters import config_of, trainable
from minift.train.config import LEAST, TrainConfig
from minift.train.step import Run

FEW = 10  # held-out rows: choosing the best adapter on fewer is remarked on
# The share of the loss by which it has to fall; EARLY where a run has only a few updates.
ENOUGH, EARLY = 0.05, 0.25


def plan_line(model: Transformer, seconds: float | None) -> str:
    """The method, the trainable share, dtype and kernels, and the planned time."""
    counts = sum(p.numel() for p in trainable(model).values())
    total = numbers(model)
    dtype = base_of(model) or str(model.embed.weight.dtype).removeprefix("torch.")
    time = "" if seconds is None else f" · about {duration(seconds)}"
    method = one_line(str(config_of(model)), 300)  # targets may be those of an adapter's file
    return (
        f"{method} · {counts:,} trainable, {100 * counts / total:.1f} %, "
        f"float32 on {dtype} · {word(model.embed.weight)} kernels{time}"
    )


def passes_line(config: TrainConfig, rows: int) -> str | None:
    """A remark that few rows mean several passes, where neither --steps nor --epochs is given."""
    once, steps = math.ceil(rows / config.batch_size), config.resolved_steps(rows)
    if config.steps is not None or config.epochs is not None or steps == once:
        return None
    return (
        f"{rows} row{'s make' if rows > 1 else ' makes'} {once} update{'s' * (once > 1)} a pass, "
        f"too few: {steps} updates, {steps / once:.3g} passes; --epochs 1 for one pass"
    )


def closing_lines(run: Run, model: Transformer, held: int) -> list[str]:
    """How the run ended, which step's adapter was kept, and where it is; `held` rows chose it."""
    lines = []
    if run.interrupted:
        lines.append(f"interrupted  after {run.steps} of {run.planned} steps; the adapter saved is "
                     f"that of step {run.kept_step}")  # fmt: skip
    if run.best_step is not None:
        loss = dict(run.evaluations)[run.best_step]
        lines.append(f"held out     loss {loss:.3f} at step {run.best_step}, the adapter kept")
        if len(run.evaluations) > 1 and held < FEW:
            lines.append(f"             chosen on {held} held-out row{'s' * (held > 1)}: that is "
                         "little; --held-out FILE")  # fmt: skip
    lines.append(
        f"saved        {run.out}/  adapter/ ({reader_of_adapter(model)})  metrics.jsonl  run.json"
    )
    if (advice := advice_line(run)) is not None:
        lines.append(advice)
    return lines


def run_facts(run: Run) -> dict[str, object]:
    """What --json says of how a run ended."""
    return {"ended": run.ended, "steps": run.steps, "kept_step": run.kept_step}


def reader_of_adapter(model: Transformer) -> str:
    """Which other program loads the adapter, and on which base model."""
    if type(config_of(model)) not in FORMATS:
        return "AdapterHub loads it"
    base = peft_name(model.source)
    return (
        f"PEFT loads it on {base}"
        if base and not base.endswith(".gguf")
        else ("PEFT loads it on its base as a folder: minift export --to hf")
    )


def advice_line(run: Run) -> str | None:
    """What to try if the loss hardly fell; None if it fell, or the run was interrupted."""
    third = max(1, run.steps // 3)
    first, last = (sum(some) / third for some in (run.losses[:third], run.losses[-third:]))
    much = ENOUGH if run.steps >= LEAST else EARLY
    if run.interrupted or not first - last < much * first:
        return None
    tips = [f"--steps {max(LEAST, 3 * run.steps)}"] if run.steps < 10 * LEAST else []
    tips.append(f"--lr {3 * (run.config.lr or 0):.1g}")
    return (
        f"             the loss changed little, {first:.3f} to {last:.3f} in {run.steps} "
        f"update{'s' * (run.steps > 1)}: try {' or '.join(tips)}"
    )
