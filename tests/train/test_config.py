"""The options of a run: what is refused, and what stands for what is not given."""

from __future__ import annotations

import pytest

from minift.errors import ConfigError
from minift.train.config import TrainConfig


@pytest.mark.parametrize("fields", [
    {"steps": 0}, {"epochs": 0.0}, {"batch_size": 0}, {"micro_batch_tokens": 0}, {"lr": 0.0},
    {"lr": float("nan")}, {"schedule": "step"}, {"warmup": 1.5}, {"clip": -1.0}, {"beta1": 1.0},
    {"eval_every": -1}, {"threads": 0}, {"eps": 0.0}, {"weight_decay": -1.0}, {"beta2": 1.0},
])  # fmt: skip
def test_a_config_that_cannot_be_is_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        TrainConfig(**fields)


def test_steps_and_epochs_together_are_refused():
    with pytest.raises(ConfigError, match="not both"):
        TrainConfig(steps=1, epochs=1.0)


def test_epochs_become_steps():
    assert TrainConfig(epochs=2.0, batch_size=4).resolved_steps(9) == 6
    assert TrainConfig(batch_size=4).resolved_steps(400) == 100


def test_how_often_a_run_is_evaluated():
    """Eight times, but no more than a tenth of the time that training takes, three times a row."""
    every = TrainConfig(epochs=1, batch_size=10).resolved_eval_every
    assert every(1000, 0) == 0
    assert every(1000, 10) == 13  # 100 steps in 8 parts
    assert every(1000, 100) == 34  # 3,000 rows' time, a tenth of it: 3 evaluations
    assert every(1000, 200) == 0  # one, at the end
    assert TrainConfig(epochs=1, eval_every=0).resolved_eval_every(1000, 10) == 0
    assert TrainConfig(epochs=1, eval_every=7).resolved_eval_every(1000, 10**6) == 7


@pytest.mark.parametrize(("options", "text"), [
    ({"graph": "yes"}, "graph: found yes, allowed off, on"),
    ({"graph": "on", "checkpointing": True}, "graph: found on with checkpointing, allowed without"),
    ({"graph": "on", "kernels": "reference"}, "graph: found on with kernels reference, allowed wi"),
])  # fmt: skip
def test_fields_that_do_not_go_together(options, text):
    with pytest.raises(ConfigError, match=text):
        TrainConfig(**options)
