"""An optimizer step of fixed shape, which a GPU replays as CUDA graphs: `fit` with graph="on".

    rows of a step  ->  [text | text | text | padding]  of C positions, N of them targets: buffers
    micro           forward, loss and backward of one such row; adds to gradients that stay in place
    update          clip, AdamW, zero the gradients: once a step

A small model's step is thousands of small kernels, and to launch one takes the CPU longer than the
GPU needs for it. In a CUDA graph, `micro` and `update` are one launch each. So nothing in them
depends on the data except the numbers in the buffers. Padding tokens form their own sequences,
masked from every other sequence and from the loss (weight 0). Whether a loss that is not finite
changes the weights is decided on the device (`GraphAdamW.update`). And nothing makes the CPU wait:
`NoSync` refuses an operation that would, once, before the capture. The result of step k is read
after step k + 1 is queued, so the CPU never waits for the GPU.

The loss and its gradients are those of `EagerStep`, round_up elsewhere. On a CPU nothing is
captured: there the same step runs as it is, for tests alone (DEVICES).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
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
from minift.peft.slots import Adapters, Slot, adapters_of
from minift.peft.soft_prompt import SoftPrompt
from minift.runtime import recorded
from minift.train.config import TrainConfig
from minift.train.flat_parameters import gradient
from minift.train.objectives.protocol import Objective, Row, TokenObjective
from minift.train.optimizer import AdamW
from minift.train.step import StepResult, check_gradients

DEVICES: tuple[str, ...] = ("cuda",)  # where `fit` takes graph="on"
EACH = 64  # positions and targets come in multiples of it; a text of padding is no longer
SHAPES = 32  # that are tried, about
OVERHEAD = 512  # positions that a micro-batch costs beside its own, in time: a guess


# ---- what cannot be captured ---------------------------------------------------------------------


def check(model: Transformer, objective: Objective, parameters: dict[str, nn.Parameter]) -> None:
    """Refuse, in one ConfigError, what cannot be a step of fixed shape; the rest is `NoSync`'s."""
    config, adapters, device = model.config, adapters_of(model), model.embed.weight.device
    scaling = config.rope_scaling
    problems = []

    def rule(good: bool, found: str, allowed: str) -> None:
        if not good:
            problems.append(f"{found}, allowed {allowed}")

    rule(device.type in DEVICES, f"the device {device}", "a GPU")
    rule(choice.fused(), "readable kernels", "the fused ones")
    rule(objective.fits_cuda_graph, f"the objective {type(objective).__name__}", "SFT")
    rule(config.causal and config.head == "lm", f"the encoder {config.family}", "a decoder")
    rule(
        scaling is None or scaling.kind != "dynamic",
        "rotary scaling that follows the longest row", "any other",
    )  # fmt: skip
    rule(
        adapters is None or not isinstance(adapters.part, SoftPrompt),
        "virtual tokens before every text", "another method",
    )  # fmt: skip
    rule(
        not choice.fused() or frozen_matrix(model.head) is not None,
        "an output matrix that is trained or changed", "a frozen one",
    )  # fmt: skip
    hooked = [
        name or "model" for name, module in model.named_modules() if has_foreign_hooks(module)
    ]
    rule(not hooked, f"hooks on {', '.join(hooked)}, which a replay passes by", "none")
    sharded = [name for name, p in parameters.items() if type(p) is not nn.Parameter]
    rule(not sharded, f"sharded parameters ({', '.join(sharded)})", "whole ones")
    if problems:
        raise ConfigError(f"graph: found on with {'; and '.join(problems)}")


def has_foreign_hooks(module: nn.Module) -> bool:
    """True if the module has hooks that are not the adapters' own; a replay would skip them."""
    return any(
        not isinstance(hook, Slot)
        and not (isinstance(hook, MethodType) and isinstance(hook.__self__, Adapters))
        for hook in hooks_of(module)
    )


class NoSync(TorchDispatchMode):
    """Refuses an operation that the CPU waits for: a number, a size, a copy between devices."""

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
        kept = [row for row in rows if targets_of(row)]
        sizes, targets = [tokens_of(row) for row in kept], [targets_of(row) for row in kept]
        parts = fixed_batches(sizes, targets, self.tokens, self.targets)
        return [[kept[i] for i in part] for part in parts]


def tokens_of(row: Row) -> int:
    """What the model reads of it: no prediction follows the last."""
    return max(0, len(row[0]) - 1)


def targets_of(row: Row) -> int:
    """How many of its tokens are targets: the first never is."""
    return sum(row[1][1:])


def round_up(count: int) -> int:
    """To a multiple of EACH."""
    return -(-max(1, count) // EACH) * EACH


def shape_of(
    rows: Sequence[Row], batch_size: int, micro_batch_tokens: int, group_by_length: bool
) -> Shape:
    """The shape in which these rows, `batch_size` a step, cost the fewest positions.

    `group_by_length`: the rows of a step have like lengths. Else they come as they stand here.
    """
    rows = sorted(rows, key=tokens_of) if group_by_length else rows
    steps = [rows[k : k + batch_size] for k in range(0, len(rows), batch_size)]
    longest = max(map(tokens_of, rows))
    most = min(max(longest, micro_batch_tokens), max(sum(map(tokens_of, step)) for step in steps))
    least, most = round_up(longest), round_up(most)
    apart = round_up((most - least) // SHAPES)

    def cost(tokens: int) -> int:
        cut = Shape(tokens, tokens).cut
        return sum(len(cut(step)) for step in steps) * (tokens + OVERHEAD)

    tokens = min((*range(least, most, apart), most), key=cost)
    parts = [part for step in steps for part in Shape(tokens, tokens).cut(step)]
    targets = max((sum(map(targets_of, part)) for part in parts), default=1)
    padding = -(-tokens // min(EACH, max(1, longest)))
    return Shape(tokens, min(tokens, round_up(targets)), batch_size + padding, longest)


@dataclass(frozen=True)
class Buffers:
    """One micro-batch: what `micro` reads."""

    tokens: Tensor  # (1, C)
    segments: Tensor  # (1, C) which text a position is of
    cu_seqlens: Tensor  # (texts + 1,) int32: where each begins, then C
    selected: Tensor  # (N,) positions with a target, then others
    targets: Tensor  # (N,) the token that follows each
    weights: Tensor  # (N,) of each in the loss: 0 where there is no target


def pack_rows(rows: Sequence[Row], shape: Shape, weight: float, dtype: torch.dtype) -> Buffers:
    """The rows packed into one and padded, on the CPU; `weight` is that of each target."""
    lengths = [tokens_of(row) for row in rows]
    full, C, N = sum(lengths), shape.tokens, shape.targets
    step = min(EACH, max(1, shape.longest))
    lengths += [min(step, C - k) for k in range(full, C, step)]
    cu_seqlens = np.full(shape.texts + 1, C, np.int32)
    cu_seqlens[: len(lengths) + 1] = np.cumsum([0, *lengths])
    loss_mask = np.zeros(C, bool)
    loss_mask[:full] = [bit == 1 for _, mask in rows for bit in mask[1:]]
    # Padding repeats the rows: ids that the model can read. Positions without a target fill N up,
    # each once: their gradient is zero, and no position is written twice.
    selected = np.argsort(~loss_mask, kind="stable")[:N]
    following = np.resize([i for ids, _ in rows for i in ids[1:]], C)
    return Buffers(
        torch.from_numpy(np.resize([i for ids, _ in rows for i in ids[:-1]], C))[None],
        torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths))[None],
        torch.from_numpy(cu_seqlens),
        torch.from_numpy(selected),
        torch.from_numpy(following[selected]),
        torch.from_numpy(loss_mask[selected]).to(dtype) * weight,
    )


# ---- the step ------------------------------------------------------------------------------------


class GraphAdamW(AdamW):
    """AdamW for a step that the CPU waits for nowhere. After `pin`, a step is

        backward passes -> update(most, loss)

    Gradients add up in place, and every tensor of a step stays where it is.
    """

    @torch.no_grad()
    def pin(self) -> None:
        """Let gradients add up where they are gathered, and rates be numbers on the device."""
        for parameter, part in self.flat.joined:
            parameter.grad = part
        for parameter in self.flat.separate:
            parameter.grad = torch.zeros_like(parameter)
        self.zero_grad()
        self.bad = torch.zeros((), dtype=torch.float32, device=self.flat.storages[0].device)
        for group in self.inner.param_groups:
            group["lr"] = torch.zeros_like(self.bad)
        # torch's fused update asks for it by this name, and where it is 1 leaves all as it is.
        self.inner.found_inf = self.bad  # type: ignore[attr-defined]

    def set_rate(self, lr: float) -> None:
        for group in self.inner.param_groups:
            group["lr"].fill_(lr * group["ratio"])

    @torch.no_grad()
    def update(self, most: float, loss: Tensor) -> Tensor:
        """Clip, update and zero the gradients; -> their norm before, on the device.

        Where it or the loss is not finite, the weights and their moments stay as they are.
        """
        norm = self.flat.gradient_norm()
        self.bad.copy_(~(norm.isfinite() & loss.isfinite()))
        if most:
            self.flat.clip(most, norm)
        capturing = self.bad.is_cuda and torch.cuda.is_current_stream_capturing()
        for group in self.inner.param_groups:  # torch asks for it then, and warns of it else
            group["capturable"] = capturing
        self.inner.step()
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        torch._foreach_zero_([gradient(storage) for storage in self.flat.storages])


@dataclass(frozen=True)
class QueuedStep:
    """A step that the device may not have come to yet."""

    num_tokens: int
    num_targets: int
    report: Tensor | None = None  # mean loss a target, gradient norm; None: without a target
    done: torch.cuda.Event | None = None

    def read(self) -> StepResult:
        """The result, as soon as it is there."""
        if self.report is None:
            return StepResult(0.0, 0.0, self.num_tokens, 0)
        if self.done is not None:
            self.done.synchronize()
        loss, norm = self.report.tolist()
        return StepResult(loss, norm, self.num_tokens, self.num_targets)


class GraphStep:
    """An optimizer step that a GPU replays; `start` queues it, `result` waits for its numbers.

    The shape suits the rows that were seen first. For a row beyond it, it grows, and the graphs are
    captured anew.
    """

    overlap = 1

    def __init__(
        self,
        model: Transformer,
        objective: TokenObjective,
        optimizer: GraphAdamW,
        parameters: dict[str, nn.Parameter],
        config: TrainConfig,
    ):
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.parameters, self.config = parameters, config
        self.device = model.embed.weight.device
        self.dtype = torch.promote_types(model.embed.weight.dtype, torch.float32)
        self.shape = Shape()
        self.buffers: Buffers
        self.loss = torch.zeros((), dtype=self.dtype, device=self.device)
        self.report = torch.zeros(2, dtype=self.dtype, device=self.device)
        self.replay: tuple[Callable[[], None], Callable[[], None]] = self.micro, self.update
        self.queued: deque[QueuedStep] = deque()

    def start(self, rows: list[int], lr: float) -> None:
        encoded = self.objective.encode_rows(rows)
        self.queued.append(self.queue(encoded, lr, self.objective.window.rows.values()))

    def result(self) -> StepResult:
        return self.queued.popleft().read()

    def release(self) -> None:
        self.optimizer.release()

    def queue(self, rows: Sequence[Row], lr: float, others: Iterable[Row] = ()) -> QueuedStep:
        """Queue one step of these rows; `others` are typical of those to come."""
        num_tokens, num_targets = sum(map(tokens_of, rows)), sum(map(targets_of, rows))
        if not num_targets:
            return QueuedStep(num_tokens, 0)
        if not self.shape.holds(rows):
            self.grow(rows, others)
        micro, update = self.replay
        self.optimizer.set_rate(lr)
        for part in self.shape.cut(rows):
            self.load(part, 1 / num_targets)
            micro()
        update()
        pinned = self.device.type == "cuda"
        report = torch.empty(2, dtype=self.dtype, pin_memory=pinned)
        report.copy_(self.report, non_blocking=True)
        done = None
        if pinned:
            done = torch.cuda.Event()
            done.record()
        return QueuedStep(num_tokens, num_targets, report, done)

    def load(self, rows: Sequence[Row], weight: float) -> None:
        """Put a micro-batch where `micro` reads it."""
        new = pack_rows(rows, self.shape, weight, self.dtype)
        for name, buffer in vars(self.buffers).items():
            source = getattr(new, name)
            if self.device.type == "cuda":  # only from there does a copy not wait
                source = source.pin_memory()
            buffer.copy_(source, non_blocking=True)

    def micro(self) -> None:
        """Forward, loss and backward of what is in the buffers."""
        b = self.buffers
        packed = PackedSequences(b.segments, b.cu_seqlens, self.shape.longest)
        hidden = self.model(
            b.tokens, segments=packed, selected=b.selected, hidden_only=True
        )  # (N, D)
        loss = self.model.nll(hidden, b.targets, b.weights)
        loss.backward()
        self.loss += loss.detach()

    @torch.no_grad()
    def update(self) -> None:
        """What an optimizer step does after its backward passes."""
        norm = self.optimizer.update(self.config.clip, self.loss)
        self.report.copy_(torch.stack((self.loss, norm.to(self.dtype))))
        self.loss.zero_()

    def update_nothing(self) -> None:
        """`update`, which a loss that is not finite keeps from changing anything."""
        self.loss.fill_(float("nan"))
        self.update()

    def grow(self, rows: Sequence[Row], others: Iterable[Row]) -> None:
        """Buffers and graphs with room for these rows."""
        config = self.config
        new = shape_of(
            [*rows, *others], config.batch_size, config.micro_batch_tokens, config.order == "length"
        )
        self.shape = Shape(*map(max, zip(astuple(self.shape), astuple(new), strict=True)))
        self.replay = self.micro, self.update  # before new graphs, the old ones' memory is free
        part = self.shape.cut(rows)[0]
        first = pack_rows(part, self.shape, 1.0, self.dtype)
        self.buffers = Buffers(*(t.to(self.device) for t in vars(first).values()))
        self.micro()  # kernels are compiled, tables made, gradients come
        check_gradients(self.parameters)
        self.optimizer.pin()
        with NoSync():
            self.micro()
            self.update_nothing()
        if self.device.type == "cuda":
            self.replay = (
                recorded(self.micro, self.micro),
                recorded(self.update, self.update_nothing),
            )
        self.optimizer.zero_grad()
        self.loss.zero_()
