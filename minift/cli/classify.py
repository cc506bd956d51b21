"""`minift classify`: train a model to put a label on a text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from minift.checkpoints.labels import with_labels
from minift.cli.accuracy import accuracy_data, measure_classes
from minift.cli.console import Console, join_names
from minift.cli.datasets import open_labelled_texts, train_and_held_out
from minift.cli.models import labels_of, training_text_format, warn_if_unfinished
from minift.cli.options import Parsed
from minift.cli.run_report import closing_lines, run_facts
from minift.cli.training import (
    Data,
    TrainingOptions,
    in_run_folder,
    open_training,
    run_training,
)
from minift.data.named import labels_of_named
from minift.errors import ConfigError, escaped, one_line
from minift.interop.adapter_files import AnyStored
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.tokenizers.interface import Tokenizer
from minift.tokenizers.text_format import TextFormat
from minift.train.objectives.classification import Classification


@in_run_folder
def classify(parsed: Parsed, console: Console) -> int:
    options = TrainingOptions.of(parsed)
    task = LabelTask.of(parsed, options)
    training = open_training(parsed, console, task, options)
    model, held, out = training.model, training.held_out, parsed.flag("out")
    most = training.objective.max_length  # no more than the model has room for
    accuracy = partial(measure_classes, parsed, console, model, training.tokenizer, max_length=most)
    first = accuracy(held) if held is not None else None
    if first is not None:
        console.say(f"before       accuracy {first}   {first.total:,} held-out texts")
    run = run_training(parsed, console, training)
    facts: dict[str, object] = {"out": str(out), "labels": task.labels, "loss": run.losses[-1]}
    lines = closing_lines(run, model, len(held or ()))
    if held is not None and first is not None and not run.interrupted:
        after = accuracy(held)
        gain = f"{100 * (after.share - first.share):+.1f} points"
        lines.insert(0, f"after        accuracy {after}   {gain}")
        facts |= {"before": first.share, "held_out": run.evaluations} | accuracy_data(after)
    console.result("\n".join(lines), facts | run_facts(run))
    console.say(f"next         minift eval --adapter {out} --data your.csv")
    console.say(f"             minift merge {out} --out merged")
    return 130 if run.interrupted else 0


@dataclass(frozen=True)
class LabelTask:
    """Texts, or pairs of texts, and a label for each; a new head on the model."""

    parsed: Parsed
    adapter: AnyStored | None
    labels: tuple[str, ...]
    texts: TextFormat  # how the adapter's training made its texts

    @classmethod
    def of(cls, parsed: Parsed, options: TrainingOptions) -> LabelTask:
        adapter = options.adapter
        labels = labels_of(parsed) if adapter is not None else ()
        texts = training_text_format(parsed) if adapter is not None else TextFormat()
        if adapter is not None and not labels:
            place = parsed.flag("adapter")
            raise ConfigError(f"{place} is no classifier: minift sft goes on from it")
        if parsed.flag("labels") is None:
            labels = labels or labels_of_named(parsed.flag("data"))
        return cls(parsed, adapter, labels or parsed.need("labels"), texts)

    def check_base(self, name: str, config: ModelConfig) -> None:
        if self.adapter is not None:
            warn_if_unfinished(self.adapter)

    def data(self, seed: int) -> tuple[Data, Data | None]:
        read = partial(open_labelled_texts, self.parsed, self.labels, self.texts)
        return train_and_held_out(self.parsed, read, seed)

    def prepare(self, model: Transformer, tokenizer: Tokenizer) -> Transformer:
        return with_labels(model, self.labels, seed=self.parsed.flag("seed"))

    def objective(
        self, model: Transformer, tokenizer: Tokenizer, train: Data, held: Data | None
    ) -> Classification:
        most = self.parsed.given.get("max_length", self.texts.max_length)
        return Classification(tokenizer, train, held, max_length=most)

    def data_line(self, objective: Classification, train: Data, held: Data | None) -> str:
        return (
            f"data         {len(train):,} texts to train on · {len(held or ()):,} held out · "
            f"labels {join_names(self.labels)}"
        )

    def example(self, console: Console, objective: Classification) -> str:
        """The first text as the model reads it, and the label that it should get."""
        ids, _, label = objective.encode(0)
        text = escaped(objective.tokenizer.decode(ids, skip_special=False).replace("\n", "⏎"))
        shown = text if len(text) <= 220 else f"{text[:110]} … {text[-110:]}"
        marked = console.mark_trained(one_line(objective.labels[label]))
        return f"{shown}   {marked}   {console.mark_trained('trained')}"
