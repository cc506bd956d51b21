"""AdamW over the trainable parameters, and the learning rate of every step.

The update is torch's (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), on flat vectors.
The schedule is a pure function of the step, so nothing about it needs saving.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from minift.errors import ConfigError

SCHEDULES = ("linear", "cosine", "constant")
MOMENTS = ("exp_avg", "exp_avg_sq")
SMALL = 2**18  # numbers of a tensor that joins a flat vector: above, its numbers cost the time
ALIGNED = 16  # numbers, 64 bytes of float32: where torch would have put a tensor of its own
ROW = 1024  # of a flat vector, when its norm is taken


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


@dataclass(frozen=True)
class Home:
    """Where a parameter's numbers are while it is trained: in a flat vector, or its own."""

    parameter: nn.Parameter
    owner: nn.Parameter  # the flat vector (N,), or the parameter itself
    begin: int = 0

    @property
    def flat(self) -> bool:
        return self.owner is not self.parameter

    def part(self, whole: Tensor) -> Tensor:
        """The parameter's part of what has its owner's shape (the data, a gradient, a moment)."""
        if not self.flat:
            return whole
        return whole[self.begin : self.begin + self.parameter.numel()].view(self.parameter.shape)


class AdamW:
    """One fused optimizer; weights of two or more dimensions decay, vectors do not.

    An adapter is hundreds of small tensors, and an operation on a small tensor costs more than its
    numbers. So the small ones of one kind (decay, ratio, dtype, device) move into one flat vector
    for as long as they are trained: the parameters become views into it, and the update, the norm
    and the clipping of their gradients are one operation each. A tensor above SMALL numbers stays
    where it is, so that full fine-tuning needs no second copy of anything.

    `ratios`: what a parameter's learning rate is multiplied by, 1 where it is silent. A parameter
    under two names is trained once, under the first. `flat=False` leaves every parameter alone: for
    those whose storage another owner manages, as FSDP2's sharded ones (DTensors). One step:

        backward passes -> norm = clip(most) -> step() -> zero_grad()

    Gradients arrive in the parameters' own `.grad`, as autograd (or DDP) hands them over; `clip`
    collects them. One that never came counts as zero. `release` gives every parameter its own
    storage again. And one step that the CPU waits for nowhere (train/captured.py), after `fix`:

        backward passes -> advance(most, loss)
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
        homes: dict[nn.Parameter, Home] = {}
        rows = []
        for (matrix, ratio), found in groups.items():
            homes |= settled(found, SMALL if flat else -1)
            owners = list(dict.fromkeys(homes[p].owner for p in found))
            rows.append(
                {"params": owners, "weight_decay": decay if matrix else 0.0, "ratio": ratio}
            )
        self.inner = torch.optim.AdamW(rows, betas=betas, eps=eps, fused=True)
        for owner in self.owners:
            self.inner.state[owner] = {
                "step": torch.zeros((), dtype=torch.float32, device=owner.device),
                "exp_avg": torch.zeros_like(owner),
                "exp_avg_sq": torch.zeros_like(owner),
            }
        self.homes = {name: homes[parameter] for parameter, name in names.items()}
        self.vectors = [owner for owner in self.owners if owner not in names]
        self.alone = [owner for owner in self.owners if owner in names]
        # A flattened parameter, and its part of the flat gradient.
        self.joined: list[tuple[nn.Parameter, Tensor]] = []
        for home in self.homes.values():
            if home.flat:
                self.joined.append((home.parameter, home.part(gradient(home.owner))))
                home.parameter.data = home.part(home.owner.data)

    @property
    def owners(self) -> list[nn.Parameter]:
        return [owner for group in self.inner.param_groups for owner in group["params"]]

    def set_rate(self, lr: float) -> None:
        for group in self.inner.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * group["ratio"])
            else:
                group["lr"] = lr * group["ratio"]

    @torch.no_grad()
    def clip(self, most: float) -> float:
        """Collect the gradients and scale them to a norm of at most `most` (0: as they are).

        Returns their norm before. One that is not finite is left as it is: do not step.
        """
        for parameter in self.alone:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if self.joined:
            parameters, parts = zip(*self.joined, strict=True)
            came = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
            torch._foreach_copy_(parts, came)
        for parameter, _ in self.joined:
            parameter.grad = None
        norm = self.norm()
        if most and math.isfinite(float(norm)):
            torch.nn.utils.clip_grads_with_norm_(self.owners, most, norm)
        return float(norm)

    def norm(self) -> Tensor:
        """Of all gradients where they were collected."""
        return torch.nn.utils.get_total_norm(
            [row_norms(gradient(v)) for v in self.vectors] + [gradient(p) for p in self.alone]
        )

    def step(self) -> None:
        """The update, from the gradients that `clip` collected."""
        self.inner.step()

    @torch.no_grad()
    def fix(self) -> None:
        """Let gradients add up where they are collected, and rates be numbers on the device.

        From now on every tensor of a step stays where it is.
        """
        for parameter, part in self.joined:
            parameter.grad = part
        for parameter in self.alone:
            parameter.grad = torch.zeros_like(parameter)
        self.forget()
        self.bad = torch.zeros((), dtype=torch.float32, device=self.owners[0].device)
        for group in self.inner.param_groups:
            group["lr"] = torch.zeros_like(self.bad)
        # torch's fused update asks for it by this name, and where it is 1 leaves all as it is.
        self.inner.found_inf = self.bad  # type: ignore[attr-defined]

    @torch.no_grad()
    def advance(self, most: float, loss: Tensor) -> Tensor:
        """Clip, update and forget the gradients; -> their norm before, on the device.

        Where it or the loss is not finite, the weights and their moments stay as they are.
        """
        norm = self.norm()
        self.bad.copy_(~(norm.isfinite() & loss.isfinite()))
        if most:
            torch.nn.utils.clip_grads_with_norm_(self.owners, most, norm)
        capturing = self.bad.is_cuda and torch.cuda.is_current_stream_capturing()
        for group in self.inner.param_groups:  # torch asks for it then, and warns of it else
            group["capturable"] = capturing
        self.inner.step()
        self.forget()
        return norm

    def forget(self) -> None:
        torch._foreach_zero_([gradient(owner) for owner in self.owners])

    def zero_grad(self) -> None:
        """Forget the gradients. (A flat vector's are overwritten by the next `clip`.)"""
        for home in self.homes.values():
            home.parameter.grad = None

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """By parameter name: `step`, and views of `exp_avg` and `exp_avg_sq` in its shape."""
        return {name: self.state_of(home) for name, home in self.homes.items()}

    def state_of(self, home: Home) -> dict[str, Any]:
        state = self.inner.state[home.owner]
        moments = {key: home.part(state[key]) for key in MOMENTS}
        return {"step": int(state["step"]), **moments}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on where `state_dict` was taken, however the parameters were grouped then.

        Raises ConfigError with everything that does not fit; nothing is changed then.
        """
        problems = [f"{name}: missing" for name in self.homes if name not in state]
        problems += [f"{name}: found no such trainable" for name in state if name not in self.homes]
        there = [(name, home, state[name]) for name, home in self.homes.items() if name in state]
        for name, home, one in there:
            wanted = tuple(home.parameter.shape)
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
        for _, home, one in there:
            mine = self.inner.state[home.owner]
            mine["step"].fill_(int(one["step"]))
            for key in MOMENTS:
                home.part(mine[key]).copy_(one[key])

    @torch.no_grad()
    def release(self) -> None:
        """End: the parameters are ordinary tensors of their own again, without gradients."""
        self.zero_grad()
        for parameter, _ in self.joined:
            parameter.data = parameter.data.clone()
        self.homes, self.joined, self.vectors, self.alone = {}, [], [], []
        self.inner.state.clear()
        self.inner.param_groups.clear()


def settled(parameters: Sequence[nn.Parameter], most: int) -> dict[nn.Parameter, Home]:
    """A home for each: those of at most `most` numbers share a vector a dtype and device."""
    homes = {parameter: Home(parameter, parameter) for parameter in parameters}
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.numel() <= most:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for (dtype, device), members in kinds.items():
        begins, end = [], 0
        for parameter in members:
            begins.append(end)
            end += -(-parameter.numel() // ALIGNED) * ALIGNED
        vector = nn.Parameter(torch.zeros(-(-end // ROW) * ROW, dtype=dtype, device=device))
        vector.grad = torch.zeros_like(vector)
        for parameter, begin in zip(members, begins, strict=True):
            home = Home(parameter, vector, begin)
            home.part(vector.data).copy_(parameter.data)
            homes[parameter] = home
    return homes


def gradient(owner: nn.Parameter) -> Tensor:
    assert owner.grad is not None
    return owner.grad


def row_norms(vector: Tensor) -> Tensor:
    """The norms of a flat vector's rows: summed in one go, float32 would lose four digits."""
    return torch.linalg.vector_norm(vector.view(-1, ROW), dim=1)
