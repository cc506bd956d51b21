"""What a run leaves behind, however it ends: the best adapter, and the truth about it."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load_model
from minift.errors import DataError, Notice, StorageError
from minift.interop.adapter_files import load_adapter
from minift.peft.adapters import trainable
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.train import loop, run_folder, step
from minift.train.config import TrainConfig
from minift.train.keeper import Diverged, catch_signals
from minift.train.loop import fit
from minift.train.objectives.batch import token_batches
from minift.train.objectives.sft import SFT

LLAMA = Path(__file__).parents[1] / "golden" / "llama_gqa"
ROWS = [([1, 2, 3, 4, 5], [0, 0, 1, 1, 1]), ([6, 7, 8, 9], [0, 1, 1, 1])]


class Rows:
    """An objective over two rows; the step `broken` meets a bad one."""

    rows, packs, fits_cuda_graph, tokenizer = 2, False, False, None
    loss_sum = SFT.loss_sum

    def __init__(self, broken=None):
        self.broken, self.active_change = broken, 0

    def check(self, model):
        pass

    def load_window(self, indices):
        pass

    def lengths(self, indices):
        return [len(ROWS[i][0]) for i in indices]

    def batches(self, indices, max_tokens):
        self.active_change += 1
        if self.active_change == self.broken:
            raise DataError("rows.jsonl", 7, "text", "nothing", "text")
        return token_batches([ROWS[i] for i in indices], max_tokens)

    def held_out_batches(self, max_tokens):
        yield from token_batches(ROWS[:1], max_tokens)

    def example(self):
        return ROWS[0]

    def summary(self):
        return {"objective": "rows"}


@pytest.fixture
def model():
    return attach(load_model(LLAMA), LoRA(rank=2))


@pytest.fixture
def held_out(monkeypatch):
    """`held_out(3.0, 1.0, ...)`: what the evaluations will find."""

    def find(*losses):
        each = iter(losses)
        monkeypatch.setattr(loop, "held_out_loss", lambda *rest: next(each))

    return find


def config(steps, every=2, **more):
    return TrainConfig(steps=steps, batch_size=2, lr=0.02, eval_every=every, threads=1, **more)


def facts(out):
    return json.loads((out / "run.json").read_text())


def saved(out):
    return {n: p.clone() for n, p in trainable(
        load_adapter(load_model(LLAMA), out / "adapter", trainable=True)).items()}  # fmt: skip


def weights(model):
    return {n: p.detach().clone() for n, p in trainable(model).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_best_is_on_disk_from_the_moment_it_is_found(model, held_out, tmp_path):
    held_out(3.0, 1.0, 2.0)
    out, seen, at = tmp_path / "r", [], {}

    def watch(progress):
        at[progress.step] = weights(model)
        if progress.step > 1:
            seen.append((facts(out)["ended"], facts(out)["kept_step"]))
            assert same(saved(out), at[facts(out)["kept_step"]])

    run = fit(model, Rows(), config(6), out, watch=watch)
    assert seen == [("unfinished", step) for step in (2, 2, 4, 4, 4)]
    assert (run.ended, run.steps, run.planned, run.kept_step) == ("finished", 6, 6, 4)
    assert facts(out)["ended"] == "finished"
    assert same(weights(model), at[4])
    assert same(saved(out), at[4])


def test_an_interrupted_run_keeps_the_best_and_says_so_everywhere(model, held_out, tmp_path, capfd):
    held_out(1.0, 2.0)
    out, at = tmp_path / "r", {}

    def watch(progress):
        at[progress.step] = weights(model)
        if progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    run = fit(model, Rows(), config(50), out, watch=watch)
    assert capfd.readouterr().err.count("stopping after this step; again abandons the run") == 1
    assert (run.ended, run.interrupted, run.planned) == ("interrupted", True, 50)
    assert run.kept_step == run.best_step == 2
    assert run.steps == facts(out)["steps"] == len(run.losses)
    assert facts(out)["kept_step"] == 2
    assert facts(out)["planned_steps"] == 50
    assert same(weights(model), at[2])
    assert same(saved(out), at[2])


def test_a_second_ctrl_c_ends_at_once_and_the_best_is_on_disk(model, held_out, tmp_path):
    held_out(1.0, 0.5)
    out, at = tmp_path / "r", {}

    def watch(progress):
        at[progress.step] = weights(model)
        if progress.step == 3:
            # Raised in this thread: of two that are sent to the process one may be lost.
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second one should have ended it")

    # A process that a shell started in the background ignores SIGINT, and would now.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            fit(model, Rows(), config(50), out, watch=watch)
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.value.__notes__ == [f"the best adapter so far, of step 2 is in {out / 'adapter'}"]
    assert facts(out)["ended"] == "interrupted"
    assert same(saved(out), at[2])


def test_a_bad_row_in_mid_training_leaves_the_best(model, held_out, tmp_path):
    held_out(1.0, 2.0)
    out, at = tmp_path / "r", {}
    with pytest.raises(DataError, match="line 7") as caught:
        fit(model, Rows(broken=6), config(9), out,
            watch=lambda progress: at.update({progress.step: weights(model)}))  # fmt: skip
    assert caught.value.__notes__ == [f"the best adapter so far, of step 2 is in {out / 'adapter'}"]
    assert facts(out)["ended"].startswith("failed: DataError: rows.jsonl line 7")
    assert (facts(out)["steps"], facts(out)["kept_step"]) == (5, 2)
    assert same(saved(out), at[2])


def test_without_an_evaluation_the_last_good_weights_are_saved(model, tmp_path):
    out, at = tmp_path / "r", {}
    with pytest.raises(DataError) as caught:
        fit(model, Rows(broken=4), config(9, every=0), out,
            watch=lambda progress: at.update({progress.step: weights(model)}))  # fmt: skip
    assert caught.value.__notes__ == [f"the adapter of step 3 is in {out / 'adapter'}"]
    assert facts(out)["kept_step"] == 3
    assert same(saved(out), at[3])


def test_a_guard_rail_leaves_the_weights_of_the_last_good_step(model, tmp_path, monkeypatch):
    honest, calls = step.accumulate_gradients, []

    def explode(*arguments):
        calls.append(1)
        found = honest(*arguments)
        return found if len(calls) <= 2 else float("nan")

    monkeypatch.setattr(step, "accumulate_gradients", explode)
    out, at = tmp_path / "r", {}
    with pytest.raises(Diverged, match="step 5") as caught:
        fit(model, Rows(), config(9, every=0), out,
            watch=lambda progress: at.update({progress.step: weights(model)}))  # fmt: skip
    assert caught.value.__notes__ == [f"the adapter of step 2 is in {out / 'adapter'}"]
    assert facts(out)["ended"] == "diverged"
    assert same(saved(out), at[2])


def test_an_error_before_the_first_step_leaves_no_record_and_no_note(model, tmp_path):
    with pytest.raises(DataError) as caught:
        fit(model, Rows(broken=1), config(9), tmp_path / "r")
    assert not hasattr(caught.value, "__notes__")
    assert not (tmp_path / "r").exists()


def full_at(monkeypatch, calls):
    """The disk is full at these saves of an adapter, counted from 1."""
    honest, count = run_folder.save_adapter, []

    def save(*arguments, **options):
        count.append(1)
        if len(count) in calls:
            raise StorageError(arguments[1], "cannot write", errno.ENOSPC)
        honest(*arguments, **options)

    monkeypatch.setattr(run_folder, "save_adapter", save)


def test_a_save_that_fails_meanwhile_is_said_once_and_made_up_for(
    model, held_out, tmp_path, monkeypatch
):
    held_out(3.0, 2.0, 1.0, 4.0)
    full_at(monkeypatch, {2, 3})
    out, seen = tmp_path / "r", []
    text = r"the best adapter, of step 4, is not saved yet, that of step 2 is \(No space left"
    with pytest.warns(Notice, match=text) as said:
        run = fit(model, Rows(), config(8), out, watch=lambda progress: seen.append(
            facts(out)["kept_step"] if progress.step > 1 else None))  # fmt: skip
    assert len(said) == 1
    assert seen[-1] == 2
    assert run.kept_step == facts(out)["kept_step"] == 6
    assert same(saved(out), weights(model))


def test_a_record_that_fails_after_its_adapter_says_so(model, held_out, tmp_path, monkeypatch):
    held_out(3.0, 2.0)
    honest, count = run_folder.write_file, []

    def write(path, content):
        count.append(1)
        if len(count) == 1:
            raise StorageError(path, "cannot write", errno.ENOSPC)
        honest(path, content)

    monkeypatch.setattr(run_folder, "write_file", write)
    with pytest.warns(Notice, match="the best adapter, of step 2, is saved, but run.json does not"):
        fit(model, Rows(), config(4), tmp_path / "r")
    assert facts(tmp_path / "r")["kept_step"] == 4


def test_what_fails_in_the_first_step_costs_no_older_run(model, tmp_path):
    out = tmp_path / "r"
    fit(model, Rows(), config(2, every=0), out)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    with pytest.raises(DataError):
        fit(model, Rows(broken=1), config(2, every=0), out, overwrite=True)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before


def test_records_are_json_whatever_the_numbers_are(model, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "held_out_loss", lambda *rest: math.nan)
    monkeypatch.setattr(run_folder, "RECORDED", 2)
    out = tmp_path / "r"
    fit(model, Rows(), config(3, every=1), out)

    def refuse(word):
        raise AssertionError(word)

    lines = (out / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [row["held_out_loss"] for row in rows] == [None, None, None]
    said = json.loads((out / "run.json").read_text(), parse_constant=refuse)
    assert said["held_out"] == [{"loss": None, "step": 2}, {"loss": None, "step": 3}]


def test_a_disk_that_stays_full_keeps_the_older_best(model, held_out, tmp_path, monkeypatch):
    held_out(3.0, 2.0, 1.0)
    full_at(monkeypatch, {2, 3, 4, 5})
    out, at = tmp_path / "r", {}
    with pytest.warns(Notice), pytest.raises(StorageError) as caught:
        fit(model, Rows(), config(6), out,
            watch=lambda progress: at.update({progress.step: weights(model)}))  # fmt: skip
    assert caught.value.__notes__ == [f"the best adapter so far, of step 2 is in {out / 'adapter'}"]
    assert same(saved(out), at[2])
    assert facts(out)["kept_step"] == 2


def test_a_full_disk_costs_lines_of_the_log_not_the_run(model, tmp_path, monkeypatch):
    def full(path, text):
        raise StorageError(path, "cannot write", errno.ENOSPC)

    monkeypatch.setattr(run_folder, "append_line", full)
    with pytest.warns(Notice, match=r"lines of metrics\.jsonl are missing") as said:
        run = fit(model, Rows(), config(3, every=0), tmp_path / "r")
    assert len(said) == 1
    assert run.ended == "finished"


def test_what_is_kept_does_not_depend_on_what_is_saved(held_out, tmp_path):
    """Saving draws no random number and changes no weight."""
    losses = []
    for out in (None, tmp_path / "r"):
        held_out(3.0, 2.0, 1.0)
        model = attach(load_model(LLAMA), LoRA(rank=2, dropout=0.3))
        losses.append(fit(model, Rows(), config(6), out).losses)
    assert losses[0] == losses[1]


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from test_keeper import LLAMA, LoRA, Rows, TrainConfig, attach, fit, load_model
config = TrainConfig(steps=10**6, batch_size=2, lr=1e-3, eval_every=2, threads=1)
run = fit(attach(load_model(LLAMA), LoRA(rank=2)), Rows(), config, sys.argv[1],
          watch=lambda progress: print(progress.step, flush=True))
print(run.ended, run.kept_step, run.best_step, run.steps)
"""


def killed(out, number):
    """A run in a process of its own, sent a signal after its fourth step; -> code, last line."""
    words = [sys.executable, "-c", SCRIPT.format(folder=str(Path(__file__).parent)), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if line == "4\n":
            os.kill(child.pid, number)
            break
    rest, _ = child.communicate(timeout=60)
    return child.returncode, rest.splitlines()[-1] if rest else ""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no hangup")
def test_a_closed_terminal_ends_a_run_well(tmp_path):
    out = tmp_path / "r"
    code, last = killed(out, signal.SIGHUP)
    assert code == 0
    ended, kept_step, best_step, steps = last.split()
    assert ended == facts(out)["ended"] == "interrupted"
    assert int(kept_step) == int(best_step) == facts(out)["kept_step"]
    assert int(steps) == facts(out)["steps"]
    assert saved(out)


def test_kill_9_after_an_evaluation_leaves_an_adapter_that_loads(tmp_path):
    out = tmp_path / "r"
    assert killed(out, signal.SIGKILL)[0] == -signal.SIGKILL
    assert facts(out)["ended"] == "unfinished"
    assert facts(out)["kept_step"] >= 2
    assert saved(out)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no hangup")
def test_hangups_come_in_numbers_and_never_abandon():
    with catch_signals() as event:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert event.is_set()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no hangup")
def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals() as event:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not event.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)
