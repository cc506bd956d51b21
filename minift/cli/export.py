"""`minift export`: a model or an adapter, in the format of another program."""

from __future__ import annotations

import os
from pathlib import Path

from minift.checkpoints.labels import with_labels
from minift.checkpoints.open import load, model_of_run
from minift.checkpoints.save import target_names
from minift.cli.console import Console, megabytes
from minift.cli.models import apply_text_format, base_kind, base_name
from minift.cli.options import Parsed
from minift.errors import ConfigError
from minift.formats.overwrite import ADAPTER_FOLDER, METRICS, check_target
from minift.interop.adapter_files import CONFIG, load_adapter, stored
from minift.interop.export import export as write


def export(parsed: Parsed, console: Console) -> int:
    place, out, to = Path(parsed.words[0]), parsed.need("out"), parsed.flag("to")
    check_target(out, parsed.flag("overwrite"), target_names(out) if to == "hf" else None)
    if to == "gguf-lora" and parsed.flag("chat_template") is not None:
        raise ConfigError("--chat-template: has no effect on --to gguf-lora, which holds weights")
    files = (place / CONFIG, place / ADAPTER_FOLDER / CONFIG, place / METRICS)
    if model_of_run(place) is None and any(map(os.path.exists, files)):
        adapter = stored(place)
        if adapter.classifies and to != "hf":
            raise ConfigError(
                f"{place} is a classifier: --to hf writes a folder, as minift merge does"
            )
        name = base_name(parsed, adapter)
        model, tokenizer = load(name, base=base_kind(parsed.flag("base"), adapter))
        if adapter.labels:
            model = with_labels(model, adapter.labels)
        load_adapter(model, adapter.folder)
        apply_text_format(parsed, adapter, model, tokenizer)
    else:
        if to == "gguf-lora":
            raise ConfigError(f"--to gguf-lora needs an adapter or a run, and {place} is neither")
        model, tokenizer = load(parsed.words[0], base=base_kind(parsed.flag("base")))
        apply_text_format(parsed, None, model, tokenizer)
    done = write(
        model, tokenizer, out, to=to, dtype=parsed.flag("dtype"), overwrite=parsed.flag("overwrite")
    )
    kl = "" if done.kl is None else f", mean KL {done.kl:.1e} nats"
    text = (
        f"exported     {done.path} · {done.kind}, {megabytes(done.bytes)} · read back: {done.what} "
        f"within {done.logit:.1e}{kl} on {done.tokens} tokens"
    )
    if done.same is not None:
        what = "label" if done.what == "scores" else "greedy text"
        text += f", {what} the same for {done.same} of {done.texts}"
    data = {"out": str(done.path), "kind": done.kind, "bytes": done.bytes, "kl": done.kl}
    console.result(text, data | {"logit_difference": done.logit, "same_texts": done.same})
    return 0
