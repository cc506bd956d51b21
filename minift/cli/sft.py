"""`minift sft`: supervised fine-tuning of a model on a file."""

from __future__ import annotations

from minift.checkpoints.open import headers, load
from minift.cli.console import Console
from minift.cli.datasets import open_prompts
from minift.cli.method import chosen
from minift.cli.models import base_line, base_name, headline, how_to_load, use_texts
from minift.cli.options import Parsed
from minift.cli.training import closing, in_run_folder, kept_data, show_example, sides, train_shown
from minift.errors import ConfigError
from minift.interop.adapter_files import load_adapter, stored, texts_of
from minift.peft.methods import attach
from minift.train.loop import TrainConfig
from minift.train.objectives import SFT


@in_run_folder
def sft(parsed: Parsed, console: Console) -> int:
    config, method = parsed.config(TrainConfig), chosen(parsed)  # refused before any work
    out, adapter = parsed.flag("out"), parsed.flag("adapter")
    before = stored(adapter) if adapter is not None else None
    if before is not None and before.classifies:
        raise ConfigError(f"{adapter} is a classifier: minift classify goes on from it")
    name, how = base_name(parsed, before), how_to_load(parsed, before)
    if headers(name).config.head != "lm":
        raise ConfigError(f"{name} is no language model: minift classify trains it on labels")
    train, held = sides(parsed, lambda path: open_prompts(parsed, path), config.seed)
    model, tokenizer = load(name, **how)
    use_texts(parsed, before, model, tokenizer)
    console.say(headline(config.threads))
    trained = texts_of(before.folder) if before is not None else None
    most = parsed.given.get("max_length", trained and trained.max_length)
    objective = SFT(tokenizer, train, held, max_length=most, pack=parsed.flag("pack"))
    if how["base"] is not None:
        console.say(base_line(model))
    if method is None:
        load_adapter(model, adapter, trainable=True)
    else:
        attach(model, method, seed=config.seed)
    objective.check(model)
    console.say(f"data         {len(train):,} rows to train on · {len(held or ()):,} held out")
    for line in objective.cut_lines():
        console.say(f"             {line}")
    show_example(console, objective, tokenizer)
    run = train_shown(console, model, objective, config, out, parsed.flag("overwrite"))
    facts = {"out": str(out), "loss": run.losses[-1], "held_out": run.evaluations}
    lines = closing(run, model, objective.held_out_rows)
    console.result("\n".join(lines), facts | kept_data(run))
    console.say(f"next         minift chat --adapter {out}")
    return 130 if run.interrupted else 0
