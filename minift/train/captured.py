"""An optimizer step of fixed shape, which a GPU replays as CUDA graphs: `fit` with graph="on".

    rows of a step  ->  [text | text | text | padding]  of C positions, N of them learned: buffers
    micro           forward, loss and backward of one such row; adds to gradients that stay in place
    update          clip, AdamW, forget the gradients: once a step

A small model's step is thousands of small kernels, and to launch one takes the CPU longer than the
GPU needs for it. Captured, `micro` and `update` are a launch each. So nothing in them depends on
the data but the numbers in the buffers: padding is texts of its own, which no other sees and no
loss counts (weight 0); what becomes of a loss that is not finite is decided on the device
(`AdamW.advance`). And nothing makes the CPU wait: `Unwaiting` refuses what would, once, before the
capture. Loss and norm are read when the next step has been queued, so that `fit` hears of a step
while the GPU is busy with the one after it.

The loss and its gradients are those of the ordinary step, rounded elsewhere. On a CPU nothing is
captured: there the same step runs as it is, for tests alone (DEVICES).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from minift.data.batches import fixed_batches
from minift.errors import ConfigError
from minift.kernels import choice
from minift.kernels.attention.packed import PackedSequences
from minift.kernels.cross_entropy.dispatch import frozen_matrix
from minift.kernels.lora.reference import hooks_of
from minift.model.transformer import Transformer
from minift.peft.places import Adapters, Slot, adapters_of
from minift.peft.virtual import Virtual
from minift.runtime import recorded
from minift.train.loop import Planned, Taken, TrainConfig, check_gradients
from minift.train.objectives import SFT, Objective
from minift.train.optimizer import AdamW

DEVICES: tuple[str, ...] = ("cuda",)  # where `fit` takes graph="on"
EACH = 64  # positions and targets come in multiples of it; a text of padding is no longer
SHAPES = 32  # that are tried, about
OVERHEAD = 512  # positions that a micro-batch costs beside its own, in time: a guess

Row = tuple[list[int], list[int]]  # ids, and a mask: 1 where a token is learned


# ---- what cannot be captured ---------------------------------------------------------------------


def check(model: Transformer, objective: Objective, parameters: dict[str, nn.Parameter]) -> None:
    """Refuse, in one ConfigError, what cannot be a step of fixed shape; the rest `Unwaiting`."""
    config, adapters, device = model.config, adapters_of(model), model.embed.weight.device
    scaling = config.rope_scaling
    problems = []

    def rule(good: bool, found: str, allowed: str) -> None:
        if not good:
            problems.append(f"{found}, allowed {allowed}")

    rule(device.type in DEVICES, f"the device {device}", "a GPU")
    rule(choice.fused(), "readable kernels", "the fused ones")
    rule(isinstance(objective, SFT), f"the objective {type(objective).__name__}", "SFT")
    rule(config.causal and config.head == "lm", f"the encoder {config.family}", "a decoder")
    rule(
        scaling is None or scaling.kind != "dynamic",
        "rotary scaling that follows the longest row", "any other",
    )  # fmt: skip
    rule(
        adapters is None or not isinstance(adapters.part, Virtual),
        "virtual tokens before every text", "another method",
    )  # fmt: skip
    rule(
        not choice.fused() or frozen_matrix(model.head) is not None,
        "an output matrix that is trained or changed", "a frozen one",
    )  # fmt: skip
    hooked = [name or "model" for name, module in model.named_modules() if foreign(module)]
    rule(not hooked, f"hooks on {', '.join(hooked)}, which a replay passes by", "none")
    sharded = [name for name, p in parameters.items() if type(p) is not nn.Parameter]
    rule(not sharded, f"sharded parameters ({', '.join(sharded)})", "whole ones")
    if problems:
        raise ConfigError(f"graph: found on with {'; and '.join(problems)}")


def foreign(module: nn.Module) -> bool:
    """Whether hooks hang on a module that are not the adapters' own."""
    return any(
        not isinstance(hook, Slot)
        and not (isinstance(hook, MethodType) and isinstance(hook.__self__, Adapters))
        for hook in hooks_of(module)
    )


class Unwaiting(TorchDispatchMode):
    """Refuses what the CPU would wait for: a number, a size that is one, another device's data."""

    NUMBERS = frozenset(
        ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "bincount",
         "_unique", "_unique2", "unique_dim", "unique_consecutive")
    )  # fmt: skip

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        waits = name in self.NUMBERS
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            waits = any(at is not None and at.dtype in (torch.bool, torch.uint8) for at in args[1])
        if name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            waits = True
        out = None if waits else func(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_") and not waits:
            waits = len({t.device for t in (out, *args) if isinstance(t, Tensor)}) > 1
        if waits:
            raise ConfigError(
                f"graph: found on with {name} in a step, where the CPU would wait; allowed off"
            )
        return out


# ---- shapes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What a micro-batch has room for."""

    tokens: int = 0  # C
    targets: int = 0  # N
    texts: int = 0  # those of padding counted
    longest: int = 0  # of a text

    def holds(self, rows: Sequence[Row]) -> bool:
        """Whether each of them, alone, has room."""
        return all(tokens_of(r) <= self.longest and targets_of(r) <= self.targets for r in rows)

    def cut(self, rows: Sequence[Row]) -> list[list[Row]]:
        """The rows of a step that have a target, in as few micro-batches as may be."""
        learned = [row for row in rows if targets_of(row)]
        sizes, targets = [tokens_of(row) for row in learned], [targets_of(row) for row in learned]
        parts = fixed_batches(sizes, targets, self.tokens, self.targets)
        return [[learned[i] for i in part] for part in parts]


def tokens_of(row: Row) -> int:
    """What the model reads of it: no prediction follows the last."""
    return max(0, len(row[0]) - 1)


def targets_of(row: Row) -> int:
    return sum(row[1][1:])


def rounded(count: int) -> int:
    return -(-max(1, count) // EACH) * EACH


def shape_of(rows: Sequence[Row], batch: int, micro_tokens: int, alike: bool) -> Shape:
    """The shape in which these rows, `batch` a step, cost the fewest positions.

    `alike`: those of a step have like lengths. Else they come as they stand here.
    """
    rows = sorted(rows, key=tokens_of) if alike else rows
    steps = [rows[k : k + batch] for k in range(0, len(rows), batch)]
    longest = max(map(tokens_of, rows))
    most = min(max(longest, micro_tokens), max(sum(map(tokens_of, step)) for step in steps))
    least, most = rounded(longest), rounded(most)
    apart = rounded((most - least) // SHAPES)

    def cost(tokens: int) -> int:
        cut = Shape(tokens, tokens).cut
        return sum(len(cut(step)) for step in steps) * (tokens + OVERHEAD)

    tokens = min((*range(least, most, apart), most), key=cost)
    parts = [part for step in steps for part in Shape(tokens, tokens).cut(step)]
    targets = max((sum(map(targets_of, part)) for part in parts), default=1)
    padding = -(-tokens // min(EACH, max(1, longest)))
    return Shape(tokens, min(tokens, rounded(targets)), batch + padding, longest)


@dataclass(frozen=True)
class Buffers:
    """One micro-batch: what `micro` reads."""

    tokens: Tensor  # (1, C)
    segments: Tensor  # (1, C) which text a position is of
    ends: Tensor  # (texts + 1,) int32: where each begins, then C
    wanted: Tensor  # (N,) the learned positions, then others
    targets: Tensor  # (N,) what follows them
    weights: Tensor  # (N,) what they count: 0 where none is learned


def laid(rows: Sequence[Row], shape: Shape, share: float, dtype: torch.dtype) -> Buffers:
    """The rows behind each other and padding after them, on the CPU; each target counts `share`."""
    lengths = [tokens_of(row) for row in rows]
    full, C, N = sum(lengths), shape.tokens, shape.targets
    step = min(EACH, max(1, shape.longest))
    lengths += [min(step, C - k) for k in range(full, C, step)]
    ends = np.full(shape.texts + 1, C, np.int32)
    ends[: len(lengths) + 1] = np.cumsum([0, *lengths])
    learned = np.zeros(C, bool)
    learned[:full] = [bit == 1 for _, mask in rows for bit in mask[1:]]
    # Padding is the same text once more: numbers that the model knows how to read. Positions that
    # nobody learns make N full, each once: their gradient is zero, and one place is written once.
    wanted = np.argsort(~learned, kind="stable")[:N]
    following = np.resize([i for ids, _ in rows for i in ids[1:]], C)
    return Buffers(
        torch.from_numpy(np.resize([i for ids, _ in rows for i in ids[:-1]], C))[None],
        torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))[None],
        torch.from_numpy(ends),
        torch.from_numpy(wanted),
        torch.from_numpy(following[wanted]),
        torch.from_numpy(learned[wanted]).to(dtype) * share,
    )


# ---- the step ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Queued:
    """A step that the device may not have come to yet."""

    tokens: int
    targets: int
    report: Tensor | None = None  # mean loss a target, gradient norm; None: without a target
    done: torch.cuda.Event | None = None

    def read(self) -> tuple[float, float]:
        """(loss, norm), as soon as they are there."""
        if self.report is None:
            return 0.0, 0.0
        if self.done is not None:
            self.done.synchronize()
        loss, norm = self.report.tolist()
        return loss, norm


class Captured:
    """Takes optimizer steps, from rows to updated weights.

    The shape suits the rows that were seen first; for a row beyond it, it grows, and is captured
    anew.
    """

    def __init__(
        self,
        model: Transformer,
        optimizer: AdamW,
        parameters: dict[str, nn.Parameter],
        config: TrainConfig,
    ):
        self.model, self.optimizer, self.parameters = model, optimizer, parameters
        self.config, self.device = config, model.embed.weight.device
        self.dtype = torch.promote_types(model.embed.weight.dtype, torch.float32)
        self.shape = Shape()
        self.buffers: Buffers
        self.loss = torch.zeros((), dtype=self.dtype, device=self.device)
        self.report = torch.zeros(2, dtype=self.dtype, device=self.device)
        self.replay: tuple[Callable[[], None], Callable[[], None]] = self.micro, self.update

    def queue(self, rows: Sequence[Row], lr: float, others: Iterable[Row] = ()) -> Queued:
        """One step of these rows; `others` are typical of those to come."""
        tokens, targets = sum(map(tokens_of, rows)), sum(map(targets_of, rows))
        if not targets:
            return Queued(tokens, 0)
        if not self.shape.holds(rows):
            self.grow(rows, others)
        micro, update = self.replay
        self.optimizer.set_rate(lr)
        for part in self.shape.cut(rows):
            self.load(part, 1 / targets)
            micro()
        update()
        pinned = self.device.type == "cuda"
        report = torch.empty(2, dtype=self.dtype, pin_memory=pinned)
        report.copy_(self.report, non_blocking=True)
        done = None
        if pinned:
            done = torch.cuda.Event()
            done.record()
        return Queued(tokens, targets, report, done)

    def load(self, rows: Sequence[Row], share: float) -> None:
        """Put a micro-batch where `micro` reads it."""
        new = laid(rows, self.shape, share, self.dtype)
        for name, buffer in vars(self.buffers).items():
            source = getattr(new, name)
            if self.device.type == "cuda":  # only from there does a copy not wait
                source = source.pin_memory()
            buffer.copy_(source, non_blocking=True)

    def micro(self) -> None:
        """Forward, loss and backward of what is in the buffers."""
        b = self.buffers
        packed = PackedSequences(b.segments, b.ends, self.shape.longest)
        hidden = self.model(
            b.tokens, segments=packed, selected=b.wanted, hidden_only=True
        )  # (N, D)
        loss = self.model.nll(hidden, b.targets, b.weights)
        loss.backward()
        self.loss += loss.detach()

    @torch.no_grad()
    def update(self) -> None:
        """What an optimizer step does after its backward passes."""
        norm = self.optimizer.advance(self.config.clip, self.loss)
        self.report.copy_(torch.stack((self.loss, norm.to(self.dtype))))
        self.loss.zero_()

    def harmless(self) -> None:
        """`update`, which a loss that is not finite keeps from changing anything."""
        self.loss.fill_(float("nan"))
        self.update()

    def grow(self, rows: Sequence[Row], others: Iterable[Row]) -> None:
        """Buffers and graphs with room for these rows."""
        config = self.config
        alike = config.order == "length"
        new = shape_of([*rows, *others], config.batch, config.micro_tokens, alike)
        self.shape = Shape(*map(max, zip(astuple(self.shape), astuple(new), strict=True)))
        self.replay = self.micro, self.update  # before new graphs, the old ones' memory is free
        part = self.shape.cut(rows)[0]
        first = laid(part, self.shape, 1.0, self.dtype)
        self.buffers = Buffers(*(t.to(self.device) for t in vars(first).values()))
        self.micro()  # kernels are compiled, tables made, gradients come
        check_gradients(self.parameters)
        self.optimizer.fix()
        with Unwaiting():
            self.micro()
            self.harmless()
        if self.device.type == "cuda":
            self.replay = (
                recorded(self.micro, self.micro),
                recorded(self.update, self.harmless),
            )
        self.optimizer.forget()
        self.loss.zero_()


def steps(
    work: Iterator[Planned],
    model: Transformer,
    objective: Objective,
    optimizer: AdamW,
    parameters: dict[str, nn.Parameter],
    config: TrainConfig,
    stop: Callable[[], bool],
) -> Iterator[Taken]:
    """Every step, told when the next one has been queued.

    But where `fit` looks at the weights before it goes on (one is due, or `stop()`), none has been.
    """
    assert isinstance(objective, SFT)
    taker = Captured(model, optimizer, parameters, config)
    before: tuple[Planned, Queued] | None = None
    for one in work:
        rows = objective.encoded(one.indices)
        queued = taker.queue(rows, one.lr, objective.window.values())
        if before is not None:
            yield told(*before, settled=False)
        before = one, queued
        if one.due:
            yield told(*before, settled=True)
            before = None
        elif stop():
            break
    if before is not None:
        yield told(*before, settled=True)


def told(one: Planned, queued: Queued, settled: bool) -> Taken:
    loss, norm = queued.read()
    return Taken(one.step, one.lr, loss, norm, queued.tokens, queued.targets, settled)
