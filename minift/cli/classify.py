"""`minift classify`: train a model to put a label on a text; and its part of `minift eval`."""

from __future__ import annotations

from functools import partial

from minift.checkpoints.labels import with_labels
from minift.checkpoints.open import headers, load
from minift.cli.method import chosen
from minift.cli.models import (
    base_line,
    base_name,
    headline,
    how_to_load,
    labels_of,
    open_model,
    say_ended_badly,
    trained_texts,
)
from minift.cli.options import Parsed
from minift.cli.screen import Screen, names
from minift.cli.train import closing, in_run_folder, kept_data, sides, train_shown
from minift.data.named import labels_of_named
from minift.data.read import Records, open_records, unescape_template
from minift.data.split import Rows
from minift.errors import ConfigError, escaped, one_line
from minift.model.transformer import Transformer
from minift.peft.adapters import room_left
from minift.peft.files import load_adapter, stored
from minift.peft.methods import attach
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.text_format import TextFormat
from minift.train.config import TrainConfig
from minift.train.evaluation.labels import Accuracy, class_accuracy
from minift.train.objectives.classification import LABEL, TEXT, Classification


@in_run_folder
def classify(parsed: Parsed, screen: Screen) -> int:
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
    train, held = sides(parsed, partial(read, parsed, labels, texts), config.seed)
    model, tokenizer = load(name, **how)
    most = parsed.given.get("max_length", texts.max_length)
    model = with_labels(model, labels, seed=config.seed)
    screen.say(headline(config.threads))
    if how["base"] is not None:
        screen.say(base_line(model))
    objective = Classification(tokenizer, train, held, max_length=most)
    if method is None:
        load_adapter(model, adapter, trainable=True)
    else:
        attach(model, method, seed=config.seed)
    objective.check(model)
    screen.say(
        f"data         {len(train):,} texts to train on · {len(held or ()):,} held out · "
        f"labels {names(labels)}"
    )
    for line in objective.cut_lines():
        screen.say(f"             {line}")
    show_example(screen, objective)
    most = objective.max_length  # no more than the model has room for
    accuracy = partial(measure, parsed, screen, model, tokenizer, max_length=most)
    first = accuracy(held) if held is not None else None
    if first is not None:
        screen.say(f"before       accuracy {first}   {first.total:,} held-out texts")
    run = train_shown(screen, model, objective, config, out, parsed.flag("overwrite"))
    facts: dict[str, object] = {"out": str(out), "labels": labels, "loss": run.losses[-1]}
    lines = closing(run, model, len(held or ()))
    if held is not None and first is not None and not run.interrupted:
        after = accuracy(held)
        gain = f"{100 * (after.share - first.share):+.1f} points"
        lines.insert(0, f"after        accuracy {after}   {gain}")
        facts |= {"before": first.share, "held_out": run.evaluations} | accuracy_data(after)
    screen.result("\n".join(lines), facts | kept_data(run))
    screen.say(f"next         minift eval --adapter {out} --data your.csv")
    screen.say(f"             minift merge {out} --out merged")
    return 130 if run.interrupted else 0


def score(parsed: Parsed, screen: Screen, labels: tuple[str, ...]) -> int:
    """`minift eval` of a classifier, which brings its labels and how its texts were made."""
    for name in ("documents", "chat_template"):
        if name in parsed.given:
            raise ConfigError(f"{name}: has no effect on a classifier, whose texts are rows")
    texts = trained_texts(parsed)
    records = read(parsed, labels, texts, parsed.need("data"))
    model, tokenizer = open_model(parsed)
    most = longest(parsed, texts, model)
    shown = one_line(str(records.template))
    if records.pair is not None:
        shown += f" and {one_line(records.pair)}"
    screen.say(f"texts        {shown}   labels {names(labels)}")
    accuracy = measure(parsed, screen, model, tokenizer, records, max_length=most)
    text = f"accuracy     {accuracy}   {accuracy.total:,} texts"
    screen.result(text, accuracy_data(accuracy) | {"labels": labels})
    return 0


def accuracy_data(accuracy: Accuracy) -> dict[str, object]:
    interval = list(accuracy.interval)
    return {"accuracy": accuracy.share, "interval": interval, "rows": accuracy.total}


def read(parsed: Parsed, labels: tuple[str, ...], texts: TextFormat, path: str) -> Records:
    """The data file: as the options say, else as in training, else its text and label."""
    template, target, pair = (parsed.flag(name) for name in ("template", "target", "pair"))
    if pair is None and template is None:
        pair = texts.pair
    return open_records(
        path,
        template=texts.template or TEXT if template is None else unescape_template(template),
        target=target or texts.target or LABEL,
        labels=labels,
        pair=unescape_template(pair) if pair is not None else None,
        limit=parsed.flag("limit"),
    )


def longest(parsed: Parsed, texts: TextFormat, model: Transformer) -> int:
    """Tokens of a text: as given or in training; never more than the model has room for."""
    room = room_left(model)
    if "max_length" in parsed.given:
        most: int = parsed.flag("max_length")
        if most > room:
            raise ConfigError(f"--max-length: found {most}, allowed at most {room}, "
                              "the model's context")  # fmt: skip
        return most
    return min(texts.max_length or room, room)


def show_example(screen: Screen, objective: Classification) -> None:
    """One real text as the model will read it, and what it shall say."""
    ids, _, label = objective.encode(0)
    text = escaped(objective.tokenizer.decode(ids, skip_special=False).replace("\n", "⏎"))
    shown = text if len(text) <= 220 else f"{text[:110]} … {text[-110:]}"
    learned = screen.learned(one_line(objective.labels[label]))
    screen.say(f"             {shown}   {learned}   {screen.learned('trained')}")


def measure(
    parsed: Parsed,
    screen: Screen,
    model: Transformer,
    tokenizer: Tokenizer,
    rows: Records | Rows,
    *,
    max_length: int,
) -> Accuracy:
    """`class_accuracy` with a bar beside it."""
    bar = screen.bar(len(rows), "texts")
    try:
        accuracy, _ = class_accuracy(
            model,
            tokenizer,
            rows,
            max_length=max_length,
            threads=parsed.flag("threads"),
            progress=bar.advance,
        )
        return accuracy
    finally:
        bar.close()
