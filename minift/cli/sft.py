"""`minift sft`: supervised fine-tuning of a model on a file."""

from __future__ import annotations

from dataclasses import dataclass

from minift.cli.console import Console
from minift.cli.datasets import open_prompts, train_and_held_out
from minift.cli.models import apply_text_format
from minift.cli.options import Parsed
from minift.cli.run_report import closing_lines, run_facts
from minift.cli.training import (
    Data,
    TrainingOptions,
    in_run_folder,
    marked_example,
    open_training,
    run_training,
)
from minift.errors import ConfigError
from minift.interop.adapter_files import AnyStored, texts_of
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.tokenizers.interface import Tokenizer
from minift.train.objectives.sft import SFT


@in_run_folder
def sft(parsed: Parsed, console: Console) -> int:
    options = TrainingOptions.of(parsed)
    if options.adapter is not None and options.adapter.classifies:
        adapter = parsed.flag("adapter")
        raise ConfigError(f"{adapter} is a classifier: minift classify goes on from it")
    training = open_training(parsed, console, PromptTask(parsed, options.adapter), options)
    run = run_training(parsed, console, training)
    out = parsed.flag("out")
    facts = {"out": str(out), "loss": run.losses[-1], "held_out": run.evaluations}
    lines = closing_lines(run, training.model, training.objective.held_out_rows)
    console.result("\n".join(lines), facts | run_facts(run))
    console.say(f"next         minift chat --adapter {out}")
    return 130 if run.interrupted else 0


@dataclass(frozen=True)
class PromptTask:
    """Prompts and completions, conversations or plain text, for a language model."""

    parsed: Parsed
    adapter: AnyStored | None

    def check_base(self, name: str, config: ModelConfig) -> None:
        if config.head != "lm":
            raise ConfigError(f"{name} is no language model: minift classify trains it on labels")

    def data(self, seed: int) -> tuple[Data, Data | None]:
        return train_and_held_out(self.parsed, lambda path: open_prompts(self.parsed, path), seed)

    def prepare(self, model: Transformer, tokenizer: Tokenizer) -> Transformer:
        apply_text_format(self.parsed, self.adapter, model, tokenizer)
        return model

    def objective(
        self, model: Transformer, tokenizer: Tokenizer, train: Data, held: Data | None
    ) -> SFT:
        trained = texts_of(self.adapter.folder) if self.adapter is not None else None
        most = self.parsed.given.get("max_length", trained and trained.max_length)
        return SFT(tokenizer, train, held, max_length=most, pack=self.parsed.flag("pack"))

    def data_line(self, objective: SFT, train: Data, held: Data | None) -> str:
        return f"data         {len(train):,} rows to train on · {len(held or ()):,} held out"

    def example(self, console: Console, objective: SFT) -> str:
        return marked_example(console, objective, objective.tokenizer)
