"""`minift sft`: supervised fine-tuning of a model on a file."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from pathlib import Path

import torch

from minift.checkpoints.download import peft_name
from minift.checkpoints.open import headers, load
from minift.cli.method import chosen
from minift.cli.models import base_line, base_name, headline, how_to_load, use_texts
from minift.cli.options import Parsed
from minift.cli.screen import Screen, duration, megabytes
from minift.cli.watching import Watch
from minift.data.read import Records, open_records, unescape_template
from minift.data.split import Rows, fewest_held_out, held_out
from minift.errors import ConfigError, FormatError, escaped, notice, one_line
from minift.kernels.choice import word
from minift.kernels.quantized.linear import base_of, numbers
from minift.model.transformer import Transformer
from minift.peft.adapters import config_of, trainable
from minift.peft.bottleneck import Bottleneck
from minift.peft.files import adapter_folder, load_adapter, stored, texts_of
from minift.peft.methods import attach
from minift.peft.places import linears
from minift.runtime import cores, peak_memory, rates
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.text_format import TextFormat
from minift.train.config import LEAST, TrainConfig
from minift.train.loop import fit
from minift.train.objectives.classification import Classification
from minift.train.objectives.protocol import Objective
from minift.train.objectives.sft import SFT
from minift.train.run_folder import ADAPTER_FOLDER, claim
from minift.train.step import Run

# What a step takes beside its products, on a machine of RATE GFLOP/s in float32: seconds a linear,
# and seconds a number that a linear reads or writes (benchmarks/LOG.md, "Short rows").
CALLS, NUMBERS, RATE = 0.7e-3, 1.5e-9, 457
FEW = 10  # held-out rows: a best chosen on fewer is said to be
CHANGE, AT_FIRST = 0.05, 0.25  # of the loss, the latter in a few updates: less is little


def in_run_folder(command: Callable[[Parsed, Screen], int]) -> Callable[[Parsed, Screen], int]:
    """A command whose --out is its own from before anything is loaded until it ends."""

    @wraps(command)
    def run(parsed: Parsed, screen: Screen) -> int:
        out, adapter = parsed.flag("out"), parsed.values.get("adapter")
        if adapter is not None and os.path.realpath(out) in (
            os.path.realpath(place) for place in run_folders(adapter)
        ):
            raise ConfigError(f"out: {out} is where --adapter comes from; choose another")
        with claim(out, parsed.flag("overwrite")):
            return command(parsed, screen)

    return run


def run_folders(adapter: str) -> tuple[Path, ...]:
    """The folder of an adapter, and that of its run: both as named and where links lead."""
    folders = [Path(adapter)]
    with suppress(ConfigError, FormatError):  # the command says what is wrong with it
        folders.append(adapter_folder(adapter))
    folders += [Path(os.path.realpath(folder)) for folder in folders]
    folders += [folder.parent for folder in folders if folder.name == ADAPTER_FOLDER]
    return tuple(folders)


@in_run_folder
def sft(parsed: Parsed, screen: Screen) -> int:
    config, method = parsed.config(TrainConfig), chosen(parsed)  # refused before any work
    out, adapter = parsed.flag("out"), parsed.flag("adapter")
    before = stored(adapter) if adapter is not None else None
    if before is not None and before.classifies:
        raise ConfigError(f"{adapter} is a classifier: minift classify goes on from it")
    name, how = base_name(parsed, before), how_to_load(parsed, before)
    if headers(name).config.head != "lm":
        raise ConfigError(f"{name} is no language model: minift classify trains it on labels")
    train, held = sides(parsed, lambda path: read(parsed, path), config.seed)
    model, tokenizer = load(name, **how)
    use_texts(parsed, before, model, tokenizer)
    screen.say(headline(config.threads))
    trained = texts_of(before.folder) if before is not None else None
    most = parsed.given.get("max_length", trained and trained.max_length)
    objective = SFT(tokenizer, train, held, max_length=most, pack=parsed.flag("pack"))
    if how["base"] is not None:
        screen.say(base_line(model))
    if method is None:
        load_adapter(model, adapter, trainable=True)
    else:
        attach(model, method, seed=config.seed)
    objective.check(model)
    screen.say(f"data         {len(train):,} rows to train on · {len(held or ()):,} held out")
    for line in objective.cut_lines():
        screen.say(f"             {line}")
    show_example(screen, objective, tokenizer)
    run = train_shown(screen, model, objective, config, out, parsed.flag("overwrite"))
    facts = {"out": str(out), "loss": run.losses[-1], "held_out": run.evaluations}
    lines = closing(run, model, objective.held_out_rows)
    screen.result("\n".join(lines), facts | kept_data(run))
    screen.say(f"next         minift chat --adapter {out}")
    return 130 if run.interrupted else 0


def kept_data(run: Run) -> dict[str, object]:
    """The same for --json."""
    return {"ended": run.ended, "steps": run.steps, "kept_step": run.kept_step}


def closing(run: Run, model: Transformer, held: int) -> list[str]:
    """How a run ended and what was kept, of which step, chosen on `held` rows."""
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
    lines.append(f"saved        {run.out}/  adapter/ ({loaded_by(model)})  metrics.jsonl  run.json")
    if (advice := little(run)) is not None:
        lines.append(advice)
    return lines


def loaded_by(model: Transformer) -> str:
    """Which other program takes the adapter, and on which model."""
    if isinstance(config_of(model), Bottleneck):
        return "AdapterHub loads it"
    base = peft_name(model.source)
    return (
        f"PEFT loads it on {base}"
        if base and not base.endswith(".gguf")
        else ("PEFT loads it on its base as a folder: minift export --to hf")
    )


def little(run: Run) -> str | None:
    """What to try where training changed next to nothing; None where it did, or had no time to."""
    third = max(1, run.steps // 3)
    first, last = (sum(some) / third for some in (run.losses[:third], run.losses[-third:]))
    much = CHANGE if run.steps >= LEAST else AT_FIRST
    if run.interrupted or not first - last < much * first:
        return None
    tips = [f"--steps {max(LEAST, 3 * run.steps)}"] if run.steps < 10 * LEAST else []
    tips.append(f"--lr {3 * (run.config.lr or 0):.1g}")
    return (
        f"             the loss changed little, {first:.3f} to {last:.3f} in {run.steps} "
        f"update{'s' * (run.steps > 1)}: try {' or '.join(tips)}"
    )


def sides(
    parsed: Parsed, read: Callable[[str], Records], seed: int
) -> tuple[Records | Rows, Records | Rows | None]:
    """What is trained on and what is held out: a file of its own, or a share of the data."""
    records, share = read(parsed.need("data")), parsed.flag("held_out_share")
    if parsed.flag("held_out") is not None:
        return records, read(parsed.flag("held_out"))
    if share > 0 and len(records) > 1:
        fewest = 1 if "held_out_share" in parsed.given else fewest_held_out(len(records))
        return held_out(records, share, seed, fewest=fewest)
    return records, None


def read(parsed: Parsed, path: str, texts: TextFormat | None = None) -> Records:
    """The data file as the options say; where they are silent, as in training."""
    template, target = parsed.flag("template"), parsed.flag("target")
    if template is not None:
        template = unescape_template(template)
    labels: tuple[str, ...] | None = parsed.flag("labels")

    def opened(template: str | None, target: str | None, labels: tuple[str, ...] | None) -> Records:
        return open_records(
            path, template=template, target=target, labels=labels,
            limit=parsed.flag("limit"), documents=parsed.flag("documents"),
        )  # fmt: skip

    if texts is None or not texts.template or (template is not None and target is not None):
        return opened(template, target, labels)
    try:
        found = opened(
            template or texts.template, target or texts.target, labels or texts.labels or None
        )
    except ConfigError:  # another kind of data, which says itself how it is to be read
        return opened(template, target, labels)
    if template is None:
        shown = one_line(texts.template.replace("\n", "\\n"), 200)
        line = f"is read by the template of training, '{shown}'; --template names another"
        notice(path, line)
    return found


def show_example(screen: Screen, objective: Objective, tokenizer: Tokenizer) -> None:
    """One real row as the model will read it, the learned part marked."""
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
        line += screen.learned(text) if bit else text
    screen.say(f"             {line}   {screen.learned('trained')}")


def describe(model: Transformer, seconds: float | None) -> str:
    """Method, trainable share, dtype and kernels, and the time that training should take."""
    counts = sum(p.numel() for p in trainable(model).values())
    total = numbers(model)
    dtype = base_of(model) or str(model.embed.weight.dtype).removeprefix("torch.")
    time = "" if seconds is None else f" · about {duration(seconds)}"
    method = one_line(str(config_of(model)), 300)  # targets may be those of an adapter's file
    return (
        f"{method} · {counts:,} trainable, {100 * counts / total:.1f} %, "
        f"float32 on {dtype} · {word(model.embed.weight)} kernels{time}"
    )


def passes(config: TrainConfig, rows: int) -> str | None:
    """That few rows are passed over more than once, where nobody asked for it."""
    once, steps = math.ceil(rows / config.batch_size), config.resolved_steps(rows)
    if config.steps is not None or config.epochs is not None or steps == once:
        return None
    return (
        f"{rows} row{'s make' if rows > 1 else ' makes'} {once} update{'s' * (once > 1)} a pass, "
        f"too few: {steps} updates, {steps / once:.3g} passes; --epochs 1 for one pass"
    )


def estimate(
    model: Transformer, steps: int, tokens: float, threads: int | None = None
) -> float | None:
    """Seconds for so many steps of so many tokens each; None on a GPU, whose rate is not measured.

    The frozen linears take 4 operations a weight and token, forward and backward (Kaplan et al.
    2020, arXiv:2001.08361, section 2.1, less the weight gradients that a frozen base does not
    need); what lies between them takes CALLS and NUMBERS.
    """
    weight = model.embed.weight
    if weight.device.type != "cpu":
        return None
    here = rates(threads)
    rate = here.bf16 if weight.dtype == torch.bfloat16 else here.float32
    sizes = [(one.in_features, one.out_features) for _, one in linears(model)]
    products = 4e-9 * sum(i * o for i, o in sizes) * tokens / rate
    between = CALLS * len(sizes) + NUMBERS * tokens * sum(i + o for i, o in sizes)
    return steps * (products + between * RATE / here.float32)


def train_shown(
    screen: Screen,
    model: Transformer,
    objective: SFT | Classification,
    config: TrainConfig,
    out: str | Path,
    overwrite: bool,
    label: str = "train",
) -> Run:
    """`fit` with the plan before it, a bar beside it, and what it really took after it."""
    steps = config.resolved_steps(objective.rows)
    sample = objective.lengths(range(0, objective.rows, max(1, objective.rows // 200)))
    tokens = config.batch_size * sum(sample) / len(sample)
    plan = estimate(model, steps, tokens, config.threads)
    screen.say(f"{label:<12} {describe(model, plan)}")
    if (said := passes(config, objective.rows)) is not None:
        screen.say(f"             {said}")
    watch = Watch(screen, steps, plan, config.threads or cores())
    try:
        run = fit(model, objective, config, out, overwrite=overwrite, watch=watch)
    finally:
        watch.close()
    if not run.losses:
        raise ConfigError("training made no step")
    planned = "" if plan is None else f"plan {duration(plan)}, "
    screen.say(
        f"             loss {run.losses[0]:.3f} to {run.losses[-1]:.3f} · "
        f"{run.tokens_per_second:,.0f} tokens/s · {planned}took "
        f"{duration(run.seconds)}, peak {megabytes(peak_memory())}"
    )
    return run
