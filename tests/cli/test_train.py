"""`minift sft` on a tiny model: the run, the refusals, Ctrl-C, going on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading

import pytest

from minift.checkpoints.open import load
from minift.cli import train
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.runtime import Rates
from minift.train import step
from minift.train.config import TrainConfig
from minift.train.run_folder import claim
from minift.train.step import Run


def test_a_run_says_what_it_does_and_leaves_a_run_folder(cli, tiny_model, data, tmp_path):
    out = tmp_path / "out"
    code, text, _ = cli("sft", "--model", tiny_model, "--data", data, "--out", out,
                        "--steps", 3, "--batch-size", 2, "--held-out-share", 0.3)  # fmt: skip
    assert code == 0
    assert "▐ good<|im_end|>▌" in text
    assert "LoRA r=8 alpha=16 on all" in text
    assert "held out     loss" in text
    assert {p.name for p in out.iterdir()} == {"adapter", "metrics.jsonl", "run.json"}
    facts = json.loads((out / "run.json").read_text())
    assert facts["config"]["steps"] == 3
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_is_not_written_over_unless_told(cli, tiny_model, data, tmp_path):
    words = ["sft", "--model", tiny_model, "--data", data, "--out", tmp_path / "out"]
    assert cli(*words, "--steps", 2, "--json")[0] == 0
    before = (tmp_path / "out/run.json").read_text()
    code, _, err = cli(*words, "--steps", 1)
    assert code == 2
    assert "holds a run already" in err
    # A run that is refused later takes nothing away either.
    code, _, err = cli(*words, "--overwrite", "--held-out", "none.jsonl")
    assert code == 2
    assert (tmp_path / "out/run.json").read_text() == before
    code, text, _ = cli(*words, "--steps", 1, "--overwrite", "--json")
    assert code == 0
    assert json.loads(text)["out"] == str(tmp_path / "out")
    assert len((tmp_path / "out/metrics.jsonl").read_text().splitlines()) == 1


def test_a_graph_on_a_cpu_is_refused_in_one_line_before_anything_is_made(
    cli, tiny_model, data, tmp_path
):
    out = tmp_path / "out"
    code, _, err = cli("sft", "--model", tiny_model, "--data", data, "--out", out, "--graph", "on",
                       "--device", "cpu", "--quiet")  # fmt: skip
    assert code == 2
    assert err == "minift: --graph: found on with the device cpu, allowed a GPU\n"
    assert not out.exists()


def test_the_plan_by_hand(monkeypatch):
    """Two layers of seven linears: 18,432 weights, 1,024 numbers read or written for a token."""
    model = Transformer(ModelConfig("llama", 61, 32, 2, 4, 2, 8, 64, 64))
    monkeypatch.setattr(train, "rates", lambda threads: Rates(457.0, 914.0))
    between = 14 * 0.7e-3 + 100 * 1024 * 1.5e-9
    products = 4 * 18_432 * 100 / 457e9
    assert train.estimate(model, 10, 100) == pytest.approx(10 * (between + products))
    half = train.estimate(model.bfloat16(), 10, 100)
    assert half == pytest.approx(10 * (between + products / 2))
    monkeypatch.setattr(train, "rates", lambda threads: Rates(228.5, 457.0))
    assert train.estimate(model, 10, 100) == pytest.approx(2 * half)
    assert train.estimate(model.to("meta"), 10, 100) is None


def test_ctrl_c_saves_what_there_is(cli, tiny_model, data, tmp_path, monkeypatch):
    honest = step.accumulate_gradients
    calls = []

    def pressed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return honest(*arguments)

    monkeypatch.setattr(step, "accumulate_gradients", pressed)
    out = tmp_path / "out"
    code, text, _ = cli("sft", "--model", tiny_model, "--data", data, "--out", out, "--steps", 50)
    assert code == 130
    assert "interrupted  after 2 of 50 steps; the adapter saved is that of step" in text
    assert (out / "adapter/adapter_model.safetensors").exists()
    assert json.loads((out / "run.json").read_text())["interrupted"] is True


def test_a_loss_that_explodes_is_exit_code_3(cli, tiny_model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "accumulate_gradients", lambda *rest: float("nan"))
    monkeypatch.setattr(step, "check_gradients", lambda parameters: None)
    out = tmp_path / "out"
    code, _, err = cli("sft", "--model", tiny_model, "--data", data, "--out", out, "--steps", 9,
                       "--quiet")  # fmt: skip
    assert code == 3
    assert err.startswith("minift: step 3: the loss or the gradient was not finite")
    assert not (out / "adapter").exists()


def test_an_error_in_mid_training_says_where_the_best_is(
    cli, tiny_model, data, tmp_path, monkeypatch
):
    honest, calls = step.accumulate_gradients, []

    def explode(*arguments):
        calls.append(1)
        found = honest(*arguments)
        return found if len(calls) <= 4 else float("nan")

    monkeypatch.setattr(step, "accumulate_gradients", explode)
    out = tmp_path / "out"
    code, _, err = cli("sft", "--model", tiny_model, "--data", data, "--out", out, "--steps", 9,
                       "--quiet", "--eval-every", 4, "--held-out-share", 0.3)  # fmt: skip
    assert code == 3
    assert err.splitlines()[-1] == (
        f"minift: the best adapter so far, of step 4 is in {out / 'adapter'}"
    )
    assert json.loads((out / "run.json").read_text())["ended"] == "diverged"


def test_few_rows_get_updates_that_change_something(cli, tiny_model, data, tmp_path):
    words = ["sft", "--model", tiny_model, "--data", data, "--held-out-share", 0.3, "--lr", 1e-2]
    code, text, err = cli(*words, "--out", tmp_path / "a")
    assert code == 0
    assert "rows make 1 update a pass, too few: 30 updates, 30 passes; --epochs 1 for one" in text
    facts = json.loads((tmp_path / "a/run.json").read_text())
    assert (facts["steps"], facts["planned_steps"], facts["ended"]) == (30, 30, "finished")
    losses = [one["loss"] for one in facts["held_out"]]
    assert 5 <= len(losses) <= 10
    assert min(losses) < 0.9 * losses[0]
    assert facts["kept_step"] == facts["best_step"]
    assert err.count("held out ") == len(losses)
    assert "held-out rows: that is little; --held-out FILE" in text
    code, text, _ = cli(*words, "--out", tmp_path / "b", "--epochs", 1)
    assert code == 0
    assert "too few" not in text
    assert json.loads((tmp_path / "b/run.json").read_text())["steps"] == 1


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
    assert train.little(run_with(losses)) == (
        None if said is None else f"             the loss changed little, {said}"
    )


def test_the_end_in_lines(tmp_path, tiny_model):
    run = run_with([4.0, 3.0], evaluations=[(1, 2.0), (2, 3.0)], best_step=1, kept_step=1,
                   out=tmp_path)  # fmt: skip
    model = attach(load(tiny_model)[0], LoRA(rank=2))
    assert train.closing(run, model, 9)[:2] == [
        "held out     loss 2.000 at step 1, the adapter kept",
        "             chosen on 9 held-out rows: that is little; --held-out FILE",
    ]
    assert "chosen" not in "".join(train.closing(run, model, 10))
    run.ended, run.planned = "interrupted", 7
    assert train.closing(run, model, 10)[0] == (
        "interrupted  after 2 of 7 steps; the adapter saved is that of step 1"
    )


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_going_on_from_an_adapter_keeps_its_shape(
    cli, tiny_model, run_folder, data, tmp_path, dtype
):
    out = tmp_path / "out"
    code, text, _ = cli("sft", "--model", tiny_model, "--data", data, "--out", out, "--steps", 1,
                        "--adapter", run_folder, "--dtype", dtype)  # fmt: skip
    assert code == 0
    assert "LoRA r=2" in text
    assert json.loads((out / "adapter/adapter_config.json").read_text())["r"] == 2


def test_a_csv_with_a_template(cli, tiny_model, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "".join(f"number {i},{i % 2}\n" for i in range(8)))
    code, text, _ = cli("sft", "--model", tiny_model, "--data", table, "--out", tmp_path / "out",
                        "--template", r"{text}\nWord:", "--target", "label",
                        "--labels", "bad,good", "--steps", 1)  # fmt: skip
    assert code == 0
    assert "⏎Word:▐ " in text


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


@pytest.mark.parametrize("verb", ["sft", "classify"])
def test_a_model_or_a_device_that_is_none_is_said_before_the_data_are_read(
    verb, tiny_model, data, cli, tmp_path, monkeypatch
):
    monkeypatch.delattr(f"minift.cli.{verb.replace('sft', 'train')}.sides")
    labels = ("--labels", "a,b") if verb == "classify" else ()
    for options, text in (
        (("--model", "nowhere"), "nowhere"),
        (("--model", tiny_model, "--device", "abacus"), "--device: found"),
    ):
        code, _, err = cli(verb, *options, *labels, "--data", data, "--out", tmp_path / "o")
        assert (code, err.count("\n")) == (2, 1)
        assert text in err


@pytest.mark.parametrize("verb", ["sft", "classify", "quickstart"])
def test_an_out_that_cannot_be_written_is_found_before_anything_is_loaded(
    verb, data, tmp_path, cli, monkeypatch
):
    for module in ("train", "classify", "quickstart"):
        monkeypatch.delattr(f"minift.cli.{module}.load")
    (tmp_path / "file").write_text("mine")
    words = () if verb == "quickstart" else ("--model", "m", "--data", data)
    words += ("--labels", "a,b") if verb == "classify" else ()
    code, _, err = cli(verb, *words, "--out", tmp_path / "file" / "run")
    assert code == 2
    assert err.startswith(f"minift: {tmp_path}/file/run: cannot write: Not a directory")
    assert err.count("\n") == 1


def test_two_runs_on_one_folder(tiny_model, data, tmp_path, cli):
    with claim(tmp_path / "r", False):
        told = []
        words = ("sft", "--model", tiny_model, "--data", data, "--out", tmp_path / "r")
        thread = threading.Thread(target=lambda: told.append(cli(*words)))
        thread.start()
        thread.join()
    ((code, _, err),) = told
    assert code == 2
    assert f"another run writes {tmp_path}/r, process {os.getpid()}; wait for it" in err
