"""`minift info`: what a model, an adapter or a run is made of."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from minift.checkpoints.open import Survey, model_of_run, survey
from minift.cli.console import Console, megabytes
from minift.cli.options import Parsed
from minift.cli.run_file import run_summary, unfinished_note
from minift.errors import one_line
from minift.formats.overwrite import METRICS, RUN
from minift.interop.adapter_files import CONFIG, stored, texts_of

WIDEST = 2000  # characters of a line of information


def info(parsed: Parsed, console: Console) -> int:
    """Describe a model, an adapter or a run, without loading a weight."""
    name = parsed.words[0]
    folder = Path(name)
    # os.path.exists: pathlib's raises for a name that is too long.
    files = (RUN, METRICS, CONFIG)
    of_run = model_of_run(folder) is not None
    if not of_run and any(os.path.exists(folder / file) for file in files):
        return adapter_info(folder, console)

    found = survey(name)
    config = found.config
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(found.kinds).most_common())
    data = {"path": str(found.path), "family": config.family, "parameters": found.parameters}
    lines = describe(found)
    if of_run and (run := run_summary(folder)) is not None:
        lines += "\n" + printable((f"run          {run}",))
    console.result(lines, data | {"layers": config.layers, "dim": config.dim, "kinds": kinds})
    return 0


def describe(found: Survey) -> str:
    """Describe a model in a few lines."""
    config = found.config
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(found.kinds).most_common())
    parameters = f"{found.parameters:,} parameters in {len(found.kinds)} tensors ({kinds})"
    width = f"{config.layers} layers · width {config.dim} · feed-forward {config.ff}"
    heads = f"{config.heads} heads of {config.head_dim}, {config.kv_heads} kv heads"
    scaling = config.rope_scaling
    stretched = "" if scaling is None else f", {scaling.kind} scaling"
    places = f"RoPE base {config.rope_base:,.0f}{stretched}"
    if config.positions == "learned":
        places = "learned positions"
    head = {"lm": "", "mlm": " · masked-word head", "none": " · no head"}.get(config.head)
    head = f" · labels {', '.join(config.labels)}" if head is None else head
    chat = (f"chat         {found.chat}",) if found.chat else ()
    first = found.files[0].name + (f" and {len(found.files) - 1} more" * (len(found.files) > 1))
    several = f" in {len(found.files)} files" if len(found.files) > 1 else ""
    others = ", ".join(found.ignored)
    taken = f"weights      {first}, not {others}: safetensors come first, then .bin, then .gguf"
    other = (taken,) if others else ()
    return printable(
        (
            f"file         {found.path} · {megabytes(found.bytes)}{several}",
            f"family       {config.family} · {parameters}",
            f"shape        {width} · {heads}",
            f"             vocabulary {config.vocab:,}{' (tied head)' if config.tied else ''} · "
            f"context {config.context:,} · {places}{head}",
            *other,
            f"tokenizer    {found.tokenizer}",
            *chat,
        )
    )


def printable(lines: Iterable[str]) -> str:
    """Escape and shorten lines: labels and names in files must not send commands to a terminal."""
    return "\n".join(one_line(line, WIDEST) for line in lines)


def adapter_info(folder: Path, console: Console) -> int:

    adapter = stored(folder)
    place, base = adapter.folder, adapter.base
    file = adapter.opened()
    numbers = sum(math.prod(entry.shape) for entry in file.tensors.values())
    lines = [
        f"adapter      {place} · {adapter.summary()}",
        f"             {numbers:,} parameters in {len(file.tensors)} tensors · base {base}",
    ]
    if adapter.labels:
        lines.append(f"labels       {', '.join(adapter.labels)}")
    texts = texts_of(place)
    if texts is not None:
        lines += [f"texts        {line}" if k == 0 else f"             {line}"
                  for k, line in enumerate(texts.lines())]  # fmt: skip
    run = run_summary(folder)
    if run is not None:
        lines.append(f"run          {run}")
    if (badly := unfinished_note(place)) is not None:
        lines.append(f"             {badly}")
    console.result(printable(lines), {"path": str(place), "parameters": numbers, "base": base})
    return 0
