"""One optimizer step: gradients whatever the micro-batches, and a module that is wrapped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from minift.checkpoints.open import load_model
from minift.errors import ConfigError
from minift.kernels.dropout import keyed
from minift.peft import methods
from minift.peft.adapters import trainable
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.peft.slots import changes
from minift.train.config import TrainConfig
from minift.train.objectives.batch import token_batches
from minift.train.objectives.sft import SFT
from minift.train.optimizer import AdamW
from minift.train.step import (
    EagerStep,
    LossModule,
    Run,
    StepResult,
    accumulate_gradients,
    check_gradients,
    count_targets,
)

GOLDEN = Path(__file__).parents[1] / "golden"


class Fixed:
    """An objective over given (ids, mask) rows."""

    loss_sum = SFT.loss_sum

    def __init__(self, lengths):
        generator = torch.Generator().manual_seed(0)
        self.train = [
            (
                torch.randint(61, (n,), generator=generator).tolist(),
                [0] * (n // 2) + [1] * (n - n // 2),
            )
            for n in lengths
        ]

    def batches(self, indices, max_tokens):
        return token_batches([self.train[i] for i in indices], max_tokens)


def adapted(dtype=torch.float64, method=LoRA(rank=2)):  # noqa: B008
    model = attach(load_model(GOLDEN / "llama_gqa", dtype=dtype), method)
    with torch.no_grad():
        for k, (_, _, change) in enumerate(changes(model)):
            change.B.copy_(torch.sin(torch.arange(change.B.numel()) + k).view(change.B.shape) * 0.1)
    return model


def grads_with(micro_batch_tokens, checkpointing=False):
    model = adapted()
    model.checkpointing = checkpointing
    objective = Fixed([3, 12, 5, 7, 2, 9, 4, 6])
    batches = objective.batches(list(range(8)), micro_batch_tokens)
    loss = accumulate_gradients(LossModule(model, objective), batches, count_targets(batches))
    return loss, [p.grad for p in trainable(model).values()]


@pytest.mark.parametrize("micro_batch_tokens", [1, 24, 40])
def test_micro_batches_of_unequal_length_give_the_same_gradient(micro_batch_tokens):
    whole, cut = grads_with(10_000), grads_with(micro_batch_tokens)
    assert cut[0] == pytest.approx(whole[0], rel=1e-12)
    for mine, expected in zip(cut[1], whole[1], strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)


def test_checkpointing_changes_no_gradient():
    whole, again = grads_with(10_000), grads_with(10_000, checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(whole[1], again[1], strict=True))


def gradient_of(model, objective, numbers, between=lambda: None):
    """The gradient of these micro-batches, each by its own number, in this order."""
    module = LossModule(model.train(), objective)
    for number in numbers:
        with keyed(7, 3, number):
            module(objective.batches([number], 100)[0]).backward()
        between()
    found = [p.grad for p in trainable(model).values()]
    for p in trainable(model).values():
        p.grad = None
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_masks_depend_on_no_order_and_on_nothing_in_between(checkpointing):
    model, objective = adapted(method=LoRA(rank=2, dropout=0.4)), Fixed([5, 9, 7])

    def evaluate():
        torch.rand(5)
        with torch.no_grad():
            model.eval()(torch.tensor([[1, 2, 3]]))
            model.train()(torch.tensor([[1, 2, 3]]))

    first = gradient_of(model, objective, [0, 1, 2])
    model.checkpointing = checkpointing
    for found in (
        gradient_of(model, objective, [2, 0, 1]), gradient_of(model, objective, [0, 1, 2], evaluate)
    ):  # fmt: skip
        for mine, expected in zip(found, first, strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)
    other = gradient_of(model, Fixed([5, 9, 7]), [0, 1])
    assert not torch.allclose(other[0], first[0])


def test_a_step_has_the_masks_of_its_number_whatever_was_before():
    """A resumed run sets the number of its first step."""

    def losses(number, steps):
        model, objective = adapted(method=LoRA(rank=2, dropout=0.4)), Fixed([5, 9, 7])
        parameters = trainable(model)
        optimizer = AdamW(parameters, {}, betas=(0.9, 0.999), eps=1e-8, decay=0.0)
        module, config = LossModule(model.train(), objective), TrainConfig()
        step, found = EagerStep(module, objective, optimizer, parameters, config), []
        step.number = number
        for _ in range(steps):
            step.start([0, 1, 2], 0.0)  # no weight changes
            found.append(step.result().loss)
        return found

    whole = losses(0, 4)
    assert len(set(whole)) == 4
    assert losses(2, 2) == whole[2:]


class Wrapped(nn.Module):
    """As DDP wraps a module: it calls it, and has it as `.module` alone."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return self.module(batch)


@pytest.mark.parametrize("wrap", [lambda module: module, Wrapped])
def test_a_step_changes_the_weights_and_tells_its_loss_and_counts(wrap):
    model, objective = adapted(), Fixed([5, 9, 7])
    before = {n: p.detach().clone() for n, p in trainable(model).items()}
    parameters, config = trainable(model), TrainConfig(clip=0.5)
    optimizer = AdamW(
        parameters, methods.learning_ratios(model), betas=(0.9, 0.999), eps=1e-8, decay=0.0
    )
    step = EagerStep(wrap(LossModule(model, objective)), objective, optimizer, parameters, config)
    step.start([0, 2], 0.01)
    first = step.result()
    assert (first.num_tokens, first.num_targets) == (4 + 6, 3 + 4)
    assert first.changed_weights
    assert not any(torch.equal(p, before[n]) for n, p in parameters.items())
    step.start([0, 2], 0.01)
    assert step.result().loss < first.loss
    step.release()
    assert all(p.grad is None for p in parameters.values())


@pytest.mark.parametrize(("loss", "norm", "targets", "changed"), [
    (1.0, 2.0, 3, True), (1.0, 2.0, 0, False), (float("nan"), 2.0, 3, False),
    (1.0, float("inf"), 3, False),
])  # fmt: skip
def test_which_steps_change_the_weights(loss, norm, targets, changed):
    assert StepResult(loss, norm, 9, targets).changed_weights == changed


def test_a_trainable_that_no_gradient_reaches_is_named():
    given = {"a": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.ones(1))}
    given["a"].grad = torch.ones(1)
    with pytest.raises(ConfigError, match="no gradient reached 1 trainables: b"):
        check_gradients(given)


def test_what_a_run_says():
    run = Run(TrainConfig(), 9, [2.0, 1.0], tokens=100, seconds=4.0, ended="interrupted")
    assert (run.steps, run.interrupted, run.tokens_per_second) == (2, True, 25.0)
