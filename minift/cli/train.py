"""`minift sft`: supervised fine-tuning of a model on a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from minift.checkpoints.open import load
from minift.cli.method import chosen
from minift.cli.models import base_dtype, base_kind, base_line, headline
from minift.cli.options import Parsed
from minift.cli.screen import Bar, Screen, duration, megabytes
from minift.data.read import Records, open_records, unescape_template
from minift.data.split import Rows, fewest_held_out, held_out
from minift.errors import ConfigError, escaped, one_line
from minift.kernels.choice import word
from minift.kernels.quantized.linear import base_of, numbers
from minift.model.transformer import Transformer
from minift.peft.adapters import config_of, trainable
from minift.peft.files import load_adapter, stored
from minift.peft.methods import attach
from minift.peft.places import linears
from minift.runtime import device_of, machine, peak_memory
from minift.tokenizers.interface import Tokenizer
from minift.train.classification import Classification
from minift.train.loop import Progress, Run, TrainConfig, check_out, fit
from minift.train.objectives import SFT, Objective

# What a step takes beside its products, on a machine of RATE GFLOP/s in float32: seconds a linear,
# and seconds a number that a linear reads or writes (benchmarks/LOG.md, "Short rows").
CALLS, NUMBERS, RATE = 0.7e-3, 1.5e-9, 457


def sft(parsed: Parsed, screen: Screen) -> int:
    name, _, out = parsed.need("model"), parsed.need("data"), parsed.need("out")
    config = parsed.config(TrainConfig)  # refused before any work
    method = chosen(parsed)
    check_out(out, parsed.flag("overwrite"))
    adapter = parsed.flag("adapter")
    base = base_kind(parsed.flag("base"), stored(adapter) if adapter is not None else None)
    train, held = sides(parsed, lambda path: read(parsed, path), config.seed)
    device = device_of(parsed.flag("device"))
    dtype = base_dtype(parsed.flag("dtype"), config.threads, device)
    model, tokenizer = load(name, dtype=dtype, device=device, base=base)
    if model.config.head != "lm":
        raise ConfigError(f"{name} is no language model: minift classify trains it on labels")
    tokenizer.chat_template = parsed.flag("chat_template")
    screen.say(headline())
    most, pack = parsed.flag("max_length"), parsed.flag("pack")
    objective = SFT(tokenizer, train, held, max_length=most, pack=pack)
    if base is not None:
        screen.say(base_line(model))
    if method is None:
        load_adapter(model, adapter, trainable=True)
    else:
        attach(model, method, seed=config.seed)
    screen.say(f"data         {len(train):,} rows to train on · {len(held or ()):,} held out")
    show_example(screen, objective, tokenizer)
    run = train_shown(screen, model, objective, config, out, parsed.flag("overwrite"))
    data_out = {"out": str(out), "loss": run.losses[-1], "held_out": run.evaluations}
    text = f"saved        {out}/  adapter/ (PEFT loads it)  metrics.jsonl  run.json"
    if run.evaluations:
        best = min(loss for _, loss in run.evaluations)
        text = f"held out     loss {best:.3f} at step {run.best_step}, the adapter kept\n{text}"
    if run.interrupted:
        text = f"interrupted  after step {len(run.losses)}; the adapter so far is saved\n{text}"
    screen.result(text, data_out)
    screen.say(f"next         minift chat --adapter {out}")
    return 130 if run.interrupted else 0


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


def read(parsed: Parsed, path: str) -> Records:
    """The data file as the options say."""
    template = parsed.flag("template")
    return open_records(
        path,
        template=unescape_template(template) if template is not None else None,
        target=parsed.flag("target"),
        labels=parsed.flag("labels"),
        limit=parsed.flag("limit"),
        documents=parsed.flag("documents"),
    )


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


def estimate(model: Transformer, steps: int, tokens: float) -> float | None:
    """Seconds for so many steps of so many tokens each; None on a GPU, whose rate is not measured.

    The frozen linears take 4 operations a weight and token, forward and backward (Kaplan et al.
    2020, arXiv:2001.08361, section 2.1, less the weight gradients that a frozen base does not
    need); what lies between them takes CALLS and NUMBERS.
    """
    weight = model.embed.weight
    if weight.device.type != "cpu":
        return None
    here = machine()
    rate = here.bf16 if weight.dtype == torch.bfloat16 else here.rate
    sizes = [(one.in_features, one.out_features) for _, one in linears(model)]
    products = 4e-9 * sum(i * o for i, o in sizes) * tokens / rate
    between = CALLS * len(sizes) + NUMBERS * tokens * sum(i + o for i, o in sizes)
    return steps * (products + between * RATE / here.rate)


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
    tokens = config.batch * sum(sample) / len(sample)
    plan = estimate(model, steps, tokens)
    screen.say(f"{label:<12} {describe(model, plan)}")
    bar: Bar = screen.bar(steps, "steps")

    def watch(progress: Progress) -> None:
        done = max(1e-9, progress.seconds)
        speed = f"{bar_tokens(progress) / done:,.0f} tok/s"
        bar.advance(1, f"  loss {progress.loss:.3f}  lr {progress.lr:.1e}  {speed}")

    total = 0

    def bar_tokens(progress: Progress) -> int:
        nonlocal total
        total += progress.tokens
        return total

    try:
        run = fit(model, objective, config, out, overwrite=overwrite, watch=watch)
    finally:
        bar.close()
    if not run.losses:
        raise ConfigError("training made no step")
    cut = f" · {len(objective.truncated)} rows cut to length" if objective.truncated else ""
    planned = "" if plan is None else f"plan {duration(plan)}, "
    screen.say(
        f"             loss {run.losses[0]:.3f} to {run.losses[-1]:.3f} · "
        f"{run.tokens_per_second:,.0f} tokens/s · {planned}took "
        f"{duration(run.seconds)}, peak {megabytes(peak_memory())}{cut}"
    )
    return run
