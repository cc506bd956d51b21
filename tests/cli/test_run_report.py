"""The lines at the end of a run: how it ended, what was kept, what to try."""

from __future__ import annotations

import pytest

from minift.checkpoints.open import load
from minift.cli import run_report
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.train.config import TrainConfig
from minift.train.step import Run


def run_with(losses, **more):
    config = TrainConfig(steps=len(losses), lr=5e-4)
    return Run(config, len(losses), losses, ended="finished", **more)


@pytest.mark.parametrize(("losses", "said"), [
    ([4.0, 3.9, 3.9], "4.000 to 3.900 in 3 updates: try --steps 30 or --lr 0.002"),
    ([4.0], "4.000 to 4.000 in 1 update: try --steps 30 or --lr 0.002"),
    ([4.0] * 600, "4.000 to 4.000 in 600 updates: try --lr 0.002"),
    ([4.0, 3.5, 2.9], None),
    ([4.0] * 30 + [3.7] * 30, None),
])  # fmt: skip
def test_a_loss_that_hardly_moved_says_what_to_try(losses, said):
    assert run_report.advice_line(run_with(losses)) == (
        None if said is None else f"             the loss changed little, {said}"
    )


def test_the_end_in_lines(tmp_path, tiny_model):
    run = run_with([4.0, 3.0], evaluations=[(1, 2.0), (2, 3.0)], best_step=1, kept_step=1,
                   out=tmp_path)  # fmt: skip
    model = attach(load(tiny_model)[0], LoRA(rank=2))
    assert run_report.closing_lines(run, model, 9)[:2] == [
        "held out     loss 2.000 at step 1, the adapter kept",
        "             chosen on 9 held-out rows: that is little; --held-out FILE",
    ]
    assert "chosen" not in "".join(run_report.closing_lines(run, model, 10))
    run.ended, run.planned = "interrupted", 7
    assert run_report.closing_lines(run, model, 10)[0] == (
        "interrupted  after 2 of 7 steps; the adapter saved is that of step 1"
    )
