"""What a run keeps while it goes on: the best weights, on disk from the moment they are found.

    every new best evaluation    adapter/ or model/ written whole, then run.json with "ended":
                                 "unfinished"
    the end, whatever it is      run.json with "finished", "interrupted", "diverged" or "failed: .."

So whatever ends a run, a `kill -9` too, leaves the best weights that were found before. Without an
evaluation the weights of the last good step are written, at an interruption or an error as well.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minift.errors import StorageError, notice, one_line
from minift.train.step import Progress, Run

if TYPE_CHECKING:
    from minift.train.run_folder import RunFiles

STOPPING = b"minift: stopping after this step; again abandons the run\n"


class Diverged(RuntimeError):
    """A guard rail stopped training: the loss or the gradient was not finite, again and again."""


@dataclass
class Keeper:
    """Holds the best weights of a run, and writes them and run.json."""

    parameters: Mapping[str, nn.Parameter]
    run: Run
    files: RunFiles | None  # None where nothing is written
    best: dict[str, Tensor] | None = None
    best_loss: float = math.inf
    good: int = 0  # the last step that changed the weights
    synced: bool = True  # the model has the weights of the last step read, not a later one's
    on_disk: int | None = None  # the step whose weights are on disk
    said: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path | None:
        """Of the weights; None where none are written."""
        return None if self.files is None else self.files.folder

    @property
    def what(self) -> str:
        """What is kept, for a person: the adapter or the model."""
        return self.folder.name if self.folder is not None else "weights"

    def log(self, progress: Progress) -> None:
        """A line of metrics.jsonl. A full disk costs the line, not the run."""
        if self.files is not None:
            try:
                self.files.log(progress)
            except StorageError as problem:
                self.tell("log", problem, "lines of metrics.jsonl are missing")

    def keep_if_best(self, step: int, loss: float) -> None:
        """Keep the weights of this step where none was better."""
        self.run.evaluations.append((step, loss))
        if self.good and loss < self.best_loss:
            self.best_loss, self.run.best_step = loss, step
            self.best = {n: p.detach().clone() for n, p in self.parameters.items()}
            try:
                self.write(step)
            except StorageError as problem:
                if self.on_disk == step:
                    self.tell("record", problem, f"the best {self.what}, of step {step}, is saved, "
                              "but run.json does not say so yet")  # fmt: skip
                    return
                kept = "none" if self.on_disk is None else f"that of step {self.on_disk}"
                self.tell("best", problem, f"the best {self.what}, of step {step}, is not saved "
                          f"yet, {kept} is")  # fmt: skip

    def tell(self, kind: str, problem: StorageError, what: str) -> None:
        """Say once what the disk did not take, and go on: it may take it later."""
        if kind not in self.said and self.run.out is not None:
            self.said.add(kind)
            reason = os.strerror(problem.errno) if problem.errno else str(problem)
            notice(self.run.out, f"{what} ({reason}); training goes on")

    def write(self, step: int) -> None:
        """The weights that the model has, which are those of `step`, and run.json."""
        if self.files is not None and self.folder is not None and self.on_disk != step:
            self.files.write_weights()
            self.on_disk = step
        self.run.kept_step = step if self.folder is None else self.on_disk
        self.write_record()

    def write_record(self) -> None:
        if self.files is not None:
            self.files.write_record()

    def finish(self, stopped: bool) -> None:
        """The end after a whole step: the best weights are the model's and on the disk."""
        run = self.run
        run.ended = "interrupted" if stopped and run.steps < run.planned else "finished"
        if self.best is not None:
            restore(self.parameters, self.best)
        self.write(run.best_step or self.good or run.steps)

    @contextmanager
    def save_on_error(self) -> Iterator[None]:
        """An error inside leaves the best on disk, and a line with it that says where."""
        try:
            yield
        except BaseException as problem:
            self.run.ended = how_it_ended(problem)
            if self.run.out is not None and self.run.losses:
                problem.add_note(self.rescue(problem))
            raise

    def rescue(self, problem: BaseException) -> str:
        """Write what there is after an error; -> a line that says what, and where."""
        run, failed = self.run, ""
        try:
            # Abandoned at once, maybe in the middle of an update, or a step late: then it is not
            # known which weights these are, and nothing is written.
            if isinstance(problem, Exception) and self.good and self.folder is not None:
                if self.best is not None and run.best_step != self.on_disk:
                    restore(self.parameters, self.best)
                    self.write(run.best_step or 0)
                elif self.best is None and self.synced:
                    self.write(self.good)
        except (StorageError, ValueError) as also:
            failed = "" if isinstance(problem, StorageError) else f"; not saved: {also}"
        run.kept_step = self.on_disk
        with suppress(StorageError, ValueError):
            self.write_record()
        if self.on_disk is None:
            return f"no {self.what} is saved{failed}"
        what = f"the {self.what}" if self.best is None else f"the best {self.what} so far,"
        return f"{what} of step {self.on_disk} is in {one_line(str(self.folder), 200)}{failed}"


def how_it_ended(problem: BaseException) -> str:
    """What run.json says of an error."""
    if isinstance(problem, Diverged):
        return "diverged"
    if isinstance(problem, KeyboardInterrupt):
        return "interrupted"
    return f"failed: {type(problem).__name__}: {one_line(str(problem), 200)}"


@torch.no_grad()
def restore(parameters: Mapping[str, nn.Parameter], best: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(best[name])


@contextmanager
def catch_signals() -> Iterator[threading.Event]:
    """Ctrl-C, SIGTERM and SIGHUP set the event, and say so; a second Ctrl-C or SIGTERM ends the
    process as usual.

    A terminal that is closed sends SIGHUP more than once: it never abandons. Where it is ignored
    (`nohup`) it stays so.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.getsignal(number) for number in numbers}
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
        before[hangup] = signal.getsignal(hangup)

    def note(number: int, frame: object) -> None:
        if number != hangup:
            for other in numbers:
                signal.signal(other, before[other])
        if not event.is_set():
            event.set()
            with suppress(OSError):  # no print: the signal may have come in the middle of one
                os.write(2, (b"\n" if os.isatty(2) else b"") + STOPPING)

    for number in before:
        signal.signal(number, note)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
