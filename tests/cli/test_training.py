"""What every training command does: the plan, the lines at the end, whose --out is whose."""

from __future__ import annotations

import os
import shutil
import threading

import pytest

from minift.checkpoints.open import load
from minift.cli import training
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.runtime import Rates
from minift.train.loop import Run, TrainConfig
from minift.train.run_folder import claimed


def test_the_plan_by_hand(monkeypatch):
    """Two layers of seven linears: 18,432 weights, 1,024 numbers read or written for a token."""
    model = Transformer(ModelConfig("llama", 61, 32, 2, 4, 2, 8, 64, 64))
    monkeypatch.setattr(training, "rates", lambda threads: Rates(457.0, 914.0))
    between = 14 * 0.7e-3 + 100 * 1024 * 1.5e-9
    products = 4 * 18_432 * 100 / 457e9
    assert training.estimate(model, 10, 100) == pytest.approx(10 * (between + products))
    half = training.estimate(model.bfloat16(), 10, 100)
    assert half == pytest.approx(10 * (between + products / 2))
    monkeypatch.setattr(training, "rates", lambda threads: Rates(228.5, 457.0))
    assert training.estimate(model, 10, 100) == pytest.approx(2 * half)
    assert training.estimate(model.to("meta"), 10, 100) is None


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
    assert training.little(run_with(losses)) == (
        None if said is None else f"             the loss changed little, {said}"
    )


def test_the_end_in_lines(tmp_path, tiny_model):
    run = run_with([4.0, 3.0], evaluations=[(1, 2.0), (2, 3.0)], best_step=1, kept_step=1,
                   out=tmp_path)  # fmt: skip
    model = attach(load(tiny_model)[0], LoRA(rank=2))
    assert training.closing(run, model, 9)[:2] == [
        "held out     loss 2.000 at step 1, the adapter kept",
        "             chosen on 9 held-out rows: that is little; --held-out FILE",
    ]
    assert "chosen" not in "".join(training.closing(run, model, 10))
    run.ended, run.planned = "interrupted", 7
    assert training.closing(run, model, 10)[0] == (
        "interrupted  after 2 of 7 steps; the adapter saved is that of step 1"
    )


def test_a_run_does_not_replace_the_adapter_that_it_starts_from(tiny_model, data, run_folder, cli):
    before = (run_folder / "adapter" / "adapter_model.safetensors").read_bytes()
    for adapter in (run_folder, run_folder / "adapter"):
        code, _, err = cli("sft", "--model", tiny_model, "--data", data, "--adapter", adapter,
                           "--out", run_folder, "--overwrite", "--steps", 1)  # fmt: skip
        assert code == 2
        assert err == f"minift: --out: {run_folder} is where --adapter comes from; choose another\n"
    assert (run_folder / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_nor_one_that_a_link_leads_to(tiny_model, data, run_folder, cli, tmp_path):
    (tmp_path / "to").symlink_to(run_folder / "adapter")
    (tmp_path / "run").symlink_to(run_folder)
    for adapter in (tmp_path / "to", tmp_path / "run", tmp_path / "run/adapter"):
        code, _, err = cli("sft", "--model", tiny_model, "--data", data, "--adapter", adapter,
                           "--out", run_folder, "--overwrite", "--steps", 1)  # fmt: skip
        assert code == 2
        assert "is where --adapter comes from" in err


def test_an_adapter_beside_other_folders_may_have_its_run_there(tiny_model, data, run_folder, cli,
                                                                tmp_path):  # fmt: skip
    shutil.copytree(run_folder / "adapter", tmp_path / "mine")
    code, _, err = cli("sft", "--model", tiny_model, "--data", data, "--adapter", tmp_path / "mine",
                       "--out", tmp_path, "--overwrite", "--steps", 1)  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "mine/adapter_config.json").exists()


@pytest.mark.parametrize("command", ["sft", "classify"])
def test_a_model_or_a_device_that_is_none_is_said_before_the_data_are_read(
    command, tiny_model, data, cli, tmp_path, monkeypatch
):
    monkeypatch.delattr(f"minift.cli.{command}.sides")
    labels = ("--labels", "a,b") if command == "classify" else ()
    for options, text in (
        (("--model", "nowhere"), "nowhere"),
        (("--model", tiny_model, "--device", "abacus"), "--device: found"),
    ):
        code, _, err = cli(command, *options, *labels, "--data", data, "--out", tmp_path / "o")
        assert (code, err.count("\n")) == (2, 1)
        assert text in err


@pytest.mark.parametrize("command", ["sft", "classify", "quickstart"])
def test_an_out_that_cannot_be_written_is_found_before_anything_is_loaded(
    command, data, tmp_path, cli, monkeypatch
):
    for module in ("sft", "classify", "quickstart"):
        monkeypatch.delattr(f"minift.cli.{module}.load")
    (tmp_path / "file").write_text("mine")
    words = () if command == "quickstart" else ("--model", "m", "--data", data)
    words += ("--labels", "a,b") if command == "classify" else ()
    code, _, err = cli(command, *words, "--out", tmp_path / "file" / "run")
    assert code == 2
    assert err.startswith(f"minift: {tmp_path}/file/run: cannot write: Not a directory")
    assert err.count("\n") == 1


def test_two_runs_on_one_folder(tiny_model, data, tmp_path, cli):
    with claimed(tmp_path / "r", False):
        told = []
        words = ("sft", "--model", tiny_model, "--data", data, "--out", tmp_path / "r")
        thread = threading.Thread(target=lambda: told.append(cli(*words)))
        thread.start()
        thread.join()
    ((code, _, err),) = told
    assert code == 2
    assert f"another run writes {tmp_path}/r, process {os.getpid()}; wait for it" in err
