"""`minift verify`: what a checkpoint is, whether its numbers are sound, and where two part."""

from __future__ import annotations

from minift.checkpoints.open import load_model, survey
from minift.cli.console import Console
from minift.cli.info import describe
from minift.cli.options import Parsed
from minift.errors import ConfigError
from minift.formats.overwrite import check_target
from minift.runtime import tuned
from minift.study import verify as study


def verify(parsed: Parsed, console: Console) -> int:
    name, against, out = parsed.words[0], parsed.flag("against"), parsed.flag("out")
    if out is not None:
        check_target(out, parsed.flag("overwrite"), None)
    console.say(describe(survey(name)))
    model = load_model(name)
    with tuned(parsed.flag("threads"), model.embed.weight.device):
        there = study.other_trace(against) if against is not None else None
        found = study.verify(model, there)
        if out is not None:
            study.save_trace(model, out, overwrite=parsed.flag("overwrite"))
    if found.not_finite:
        first = ", ".join(found.not_finite[:3])
        text = f"not finite   {len(found.not_finite)} of its tensors and layers: {first}"
    else:
        count = sum(1 for _ in model.parameters())
        text = f"finite       {count} tensors, and a forward pass over {found.positions} positions"
    if found.first is not None:
        layer, difference = found.first
        text += f"\ndiffers      first at {layer}, by {difference:.1e} of its largest value"
    elif against is not None:
        text += f"\nequal        {found.compared} layers, largest difference {found.largest:.1e}"
    if out is not None:
        text += f"\nsaved        {out}: minift verify OTHER --against {out}"
    data = {
        "not_finite": found.not_finite,
        "compared": found.compared,
        "largest_difference": found.largest,
        "first_difference": list(found.first) if found.first else None,
    }
    console.result(text, data)
    if not found.good:
        where = found.not_finite[0] if found.not_finite else found.first[0] if found.first else ""
        raise ConfigError(f"{name} is not what it should be: see {where}")
    return 0
