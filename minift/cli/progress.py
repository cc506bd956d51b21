"""Progress of training: a bar, each evaluation, a remark if other programs keep the cores busy.

A step computes all the time. If the main thread's CPU time falls far behind the clock, the thread
waits for a core that another process has; that is printed once.
"""

from __future__ import annotations

import math
import time

from minift.cli.console import Console
from minift.train.step import Progress

SECONDS, STEPS = 5.0, 3  # of watching before anything is said of the machine
WAITING = 0.7  # the main thread's share of the clock below which the cores are busy
SLOW = 1.5  # times as long as planned


class TrainingProgress:
    """Called by `fit` after every step."""

    def __init__(self, console: Console, steps: int, plan: float | None, threads: int):
        """`plan`: the seconds planned for all steps; None if there is no plan."""
        self.bar = console.bar(steps, "steps")
        self.per_step = None if plan is None else plan / steps
        self.threads, self.tokens, self.best = threads, 0, math.inf
        self.begin: tuple[int, float, float] | None = None  # step, clock, own time
        self.said = plan is None

    def __call__(self, progress: Progress) -> None:
        self.tokens += progress.tokens
        speed = f"{self.tokens / max(1e-9, progress.seconds):,.0f} tok/s"
        self.bar.advance(1, f"  loss {progress.loss:.3f}  {speed}  lr {progress.lr:.1e}")
        if progress.held_out_loss is not None:
            best = progress.held_out_loss < self.best
            self.best = min(self.best, progress.held_out_loss)
            text = f"held out {progress.held_out_loss:.3f} at step {progress.step}"
            self.bar.print_above(f"             {text}{' (best)' if best else ''}")
        if not self.said:
            self.check_cores(progress.step, time.perf_counter(), time.thread_time())

    def check_cores(self, step: int, clock: float, own: float) -> None:
        """After a few steps, print if they wait for a core. The first step also reads files."""
        if self.begin is None:
            self.begin = step, clock, own
            return
        steps, passed = step - self.begin[0], clock - self.begin[1]
        if steps < STEPS or passed < SECONDS:
            return
        self.said = True
        if own - self.begin[2] < WAITING * passed:
            times = passed / steps / self.per_step if self.per_step else 0.0
            text = f"training waits {1 - (own - self.begin[2]) / passed:.0%} of the time for a core"
            if times >= SLOW:
                text = f"steps take {times:.1f} times as long as planned"
            tip = "; --threads 1 may be faster" if self.threads > 1 else ""
            self.bar.print_above(f"minift: other programs keep the cores busy: {text}{tip}")

    def close(self) -> None:
        self.bar.close()
