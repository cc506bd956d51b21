"""What is said of a run while it goes on."""

from __future__ import annotations

import pytest

from minift.cli.console import Console
from minift.cli.progress import TrainingProgress
from minift.train.step import Progress


def told(step, held_out=None):
    return Progress(step, 9, 2.5, 1e-3, 1.0, 100, 50, step * 1.0, held_out)


def test_each_evaluation_is_a_line_and_the_best_is_marked(capsys):
    watch = TrainingProgress(Console(), 9, None, 2)
    for step, loss in ((1, None), (2, 1.5), (3, None), (4, 1.25), (6, 1.75)):
        watch(told(step, loss))
    assert capsys.readouterr().err.splitlines() == [
        "             held out 1.500 at step 2 (best)",
        "             held out 1.250 at step 4 (best)",
        "             held out 1.750 at step 6",
    ]


@pytest.mark.parametrize(("looks", "text"), [
    # Two seconds a step, planned one; the thread had a core for 40 % of the time.
    ([(1, 0, 0), (2, 2, 0.8), (4, 6, 2.4)],
     "minift: other programs keep the cores busy: steps take 2.0 times as long as planned; "
     "--threads 1 may be faster\n"),
    # As long as planned, but the plan was measured on the busy machine too.
    ([(1, 0, 0), (7, 6, 3.0)],
     "minift: other programs keep the cores busy: training waits 50% of the time for a core; "
     "--threads 1 may be faster\n"),
    ([(1, 0, 0), (4, 6, 5.5)], ""),  # slow, but it has the core
    ([(1, 0, 0), (3, 6, 1.0)], ""),  # too few steps to say
    ([(1, 0, 0), (5, 4, 1.0)], ""),  # too short to say
    ([(1, 0, 0), (7, 6, 5.9), (9, 20, 6.0)], ""),  # it was quiet when it was looked at
])  # fmt: skip
def test_a_busy_machine_is_said_once(looks, text, capsys):
    watch = TrainingProgress(Console(), 9, 9.0, 2)
    for look in [*looks, (8, 40, 0.1), (9, 80, 0.2)] if text else looks:
        if not watch.said:
            watch.check_cores(*look)
    assert capsys.readouterr().err == text


def test_one_thread_is_not_advised_to_one_thread(capsys):
    watch = TrainingProgress(Console(), 9, 9.0, 1)
    watch.check_cores(1, 0, 0)
    watch.check_cores(4, 6, 2.0)
    assert capsys.readouterr().err.endswith("2.0 times as long as planned\n")


def test_a_gpu_is_not_looked_at(capsys):
    assert TrainingProgress(Console(), 9, None, 2).said
