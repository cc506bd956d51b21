"""AdamW over the trainable parameters, and the learning rate of every step.

The update is torch's (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), on flat vectors
(flat_parameters.py). The schedule is a pure function of the step, so nothing about it needs saving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from minift.errors import ConfigError
from minift.train.flat_parameters import FlatParameters, FlatView

SCHEDULES = ("linear", "cosine", "constant")
MOMENTS = ("exp_avg", "exp_avg_sq")
SMALL = 2**18  # numbers of a tensor that joins a flat vector: above, its numbers cost the time


def learning_rate(schedule: str, peak: float, warmup: int, steps: int, step: int) -> float:
    """The rate of `step`, counted from 0: up to `peak` over `warmup` steps, then down to nearly 0.

    Warm-up step k uses peak (k + 1) / warmup. Afterwards `linear` falls in equal parts and would
    be 0 one step past the last; `cosine` follows half a wave; `constant` stays.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return peak * (1 - done)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * done)) / 2
    return peak


class AdamW:
    """One fused optimizer; weights of two or more dimensions decay, vectors do not.

    The small parameters of one kind (decay, ratio, dtype, device) share a flat vector for as long
    as they are trained, so that the update, the norm and the clipping of their gradients are one
    operation each.

    `ratios`: what a parameter's learning rate is multiplied by, by default 1. A parameter under two
    names is trained once, under the first. `flat=False` leaves every parameter alone: for those
    whose storage another owner manages, as FSDP2's sharded ones (DTensors). One step:

        backward passes -> norm = clip(most) -> step() -> zero_grad()
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        ratios: Mapping[nn.Parameter, float],
        *,
        betas: tuple[float, float],
        eps: float,
        decay: float,
        flat: bool = True,
    ):
        names: dict[nn.Parameter, str] = {}
        groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
        for name, parameter in parameters.items():
            if parameter not in names:
                names[parameter] = name
                kind = (parameter.dim() >= 2, ratios.get(parameter, 1.0))
                groups.setdefault(kind, []).append(parameter)
        self.flat = FlatParameters(list(groups.values()), SMALL if flat else -1)
        self.views = {name: self.flat.views[parameter] for parameter, name in names.items()}
        rows = [
            {"params": storages, "weight_decay": decay if matrix else 0.0, "ratio": ratio}
            for (matrix, ratio), storages in zip(groups, self.flat.groups, strict=True)
        ]
        self.inner = torch.optim.AdamW(rows, betas=betas, eps=eps, fused=True)
        for storage in self.flat.storages:
            self.inner.state[storage] = {
                "step": torch.zeros((), dtype=torch.float32, device=storage.device),
                "exp_avg": torch.zeros_like(storage),
                "exp_avg_sq": torch.zeros_like(storage),
            }

    def set_rate(self, lr: float) -> None:
        for group in self.inner.param_groups:
            group["lr"] = lr * group["ratio"]

    def clip(self, most: float) -> float:
        """Gather the gradients and scale them to a norm of at most `most` (0: as they are).

        Returns their L2 norm before. One that is not finite is left as it is: do not step.
        """
        self.flat.gather()
        norm = self.flat.gradient_norm()
        if most and math.isfinite(float(norm)):
            self.flat.clip(most, norm)
        return float(norm)

    def step(self) -> None:
        """Update the parameters, from the gradients that `clip` gathered."""
        self.inner.step()

    def zero_grad(self) -> None:
        self.flat.zero_grad()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """By parameter name: `step`, and views of `exp_avg` and `exp_avg_sq` in its shape."""
        return {name: self.state_of(view) for name, view in self.views.items()}

    def state_of(self, view: FlatView) -> dict[str, Any]:
        state = self.inner.state[view.storage]
        moments = {key: view.view(state[key]) for key in MOMENTS}
        return {"step": int(state["step"]), **moments}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on where `state_dict` was taken, however the parameters were grouped then.

        Raises ConfigError with everything that does not fit; nothing is changed then.
        """
        problems = [f"{name}: missing" for name in self.views if name not in state]
        problems += [f"{name}: found no such trainable" for name in state if name not in self.views]
        there = [(name, view, state[name]) for name, view in self.views.items() if name in state]
        for name, view, one in there:
            wanted = tuple(view.parameter.shape)
            for key in ("step", *MOMENTS):
                if key not in one:
                    problems.append(f"{name}: {key} is missing")
                elif key != "step" and tuple(one[key].shape) != wanted:
                    shape = tuple(one[key].shape)
                    problems.append(f"{name}: {key} found the shape {shape}, allowed {wanted}")
        steps = sorted({int(one["step"]) for _, _, one in there if "step" in one})
        if len(steps) > 1:
            problems.append(f"step: found {', '.join(map(str, steps))}, allowed one for all")
        if problems:
            raise ConfigError("optimizer state: " + "; ".join(problems))
        for _, view, one in there:
            mine = self.inner.state[view.storage]
            mine["step"].fill_(int(one["step"]))
            for key in MOMENTS:
                view.view(mine[key]).copy_(one[key])

    def release(self) -> None:
        """End: the parameters are ordinary tensors of their own again, without gradients."""
        self.flat.release()
        self.views = {}
        self.inner.state.clear()
        self.inner.param_groups.clear()
