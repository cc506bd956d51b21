"""`minift merge`: fold an adapter into its model."""

from __future__ import annotations

import math

import torch

from minift.checkpoints.labels import with_labels
from minift.checkpoints.open import load
from minift.checkpoints.save import save, target_names
from minift.cli.console import Console
from minift.cli.models import apply_text_format, base_dtype, base_kind, base_name
from minift.cli.options import Parsed
from minift.errors import ConfigError
from minift.formats.overwrite import check_target
from minift.interop.adapter_files import load_adapter, stored
from minift.interop.export import COMPARED, PROBES
from minift.peft.merge import merge as fold
from minift.peft.merge import merge_error


def merge(parsed: Parsed, console: Console) -> int:

    out = parsed.need("out")
    adapter = stored(parsed.words[0])
    name = base_name(parsed, adapter)
    check_target(out, parsed.flag("overwrite"), target_names(out))
    base = base_kind(parsed.flag("base"), adapter)
    model, tokenizer = load(name, dtype=base_dtype(parsed.flag("dtype")), base=base)
    if adapter.labels:
        model = with_labels(model, adapter.labels)
    load_adapter(model, adapter.folder)
    apply_text_format(parsed, adapter, model, tokenizer)
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
    console.result(text, {"out": out, "logit_difference": error.logit, "kl": kl})
    return 0
