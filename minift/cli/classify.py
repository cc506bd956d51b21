"""`minift classify`: train a model to put a label on a text."""

from __future__ import annotations

from functools import partial

from minift.checkpoints.labels import with_labels
from minift.checkpoints.open import headers, load
from minift.cli.accuracy import accuracy_data, measure_classes
from minift.cli.console import Console, names
from minift.cli.datasets import open_labelled_texts
from minift.cli.method import chosen
from minift.cli.models import (
    base_line,
    base_name,
    headline,
    how_to_load,
    labels_of,
    say_ended_badly,
    trained_texts,
)
from minift.cli.options import Parsed
from minift.cli.training import closing, in_run_folder, kept_data, sides, train_shown
from minift.data.named import labels_of_named
from minift.errors import ConfigError, escaped, one_line
from minift.interop.adapter_files import load_adapter, stored
from minift.peft.methods import attach
from minift.tokenizers.text_format import TextFormat
from minift.train.classification import Classification
from minift.train.loop import TrainConfig


@in_run_folder
def classify(parsed: Parsed, console: Console) -> int:
    config, method = parsed.config(TrainConfig), chosen(parsed)  # refused before any work
    out, adapter = parsed.flag("out"), parsed.flag("adapter")
    labels = labels_of(parsed) if method is None else ()
    texts = trained_texts(parsed) if method is None else TextFormat()
    if method is None and not labels:
        raise ConfigError(f"{adapter} is no classifier: minift sft goes on from it")
    if parsed.flag("labels") is None:
        labels = labels or labels_of_named(parsed.flag("data"))
    labels = labels or parsed.need("labels")
    before = stored(adapter) if adapter is not None else None
    name, how = base_name(parsed, before), how_to_load(parsed, before)
    if before is not None:
        say_ended_badly(before)
    headers(name)  # a model that is none is said before the data are read
    train, held = sides(parsed, partial(open_labelled_texts, parsed, labels, texts), config.seed)
    model, tokenizer = load(name, **how)
    most = parsed.given.get("max_length", texts.max_length)
    model = with_labels(model, labels, seed=config.seed)
    console.say(headline(config.threads))
    if how["base"] is not None:
        console.say(base_line(model))
    objective = Classification(tokenizer, train, held, max_length=most)
    if method is None:
        load_adapter(model, adapter, trainable=True)
    else:
        attach(model, method, seed=config.seed)
    objective.check(model)
    console.say(
        f"data         {len(train):,} texts to train on · {len(held or ()):,} held out · "
        f"labels {names(labels)}"
    )
    for line in objective.cut_lines():
        console.say(f"             {line}")
    show_example(console, objective)
    most = objective.max_length  # no more than the model has room for
    accuracy = partial(measure_classes, parsed, console, model, tokenizer, max_length=most)
    first = accuracy(held) if held is not None else None
    if first is not None:
        console.say(f"before       accuracy {first}   {first.total:,} held-out texts")
    run = train_shown(console, model, objective, config, out, parsed.flag("overwrite"))
    facts: dict[str, object] = {"out": str(out), "labels": labels, "loss": run.losses[-1]}
    lines = closing(run, model, len(held or ()))
    if held is not None and first is not None and not run.interrupted:
        after = accuracy(held)
        gain = f"{100 * (after.share - first.share):+.1f} points"
        lines.insert(0, f"after        accuracy {after}   {gain}")
        facts |= {"before": first.share, "held_out": run.evaluations} | accuracy_data(after)
    console.result("\n".join(lines), facts | kept_data(run))
    console.say(f"next         minift eval --adapter {out} --data your.csv")
    console.say(f"             minift merge {out} --out merged")
    return 130 if run.interrupted else 0


def show_example(console: Console, objective: Classification) -> None:
    """One real text as the model will read it, and what it shall say."""
    ids, _, label = objective.encode(0)
    text = escaped(objective.tokenizer.decode(ids, skip_special=False).replace("\n", "⏎"))
    shown = text if len(text) <= 220 else f"{text[:110]} … {text[-110:]}"
    learned = console.learned(one_line(objective.labels[label]))
    console.say(f"             {shown}   {learned}   {console.learned('trained')}")
