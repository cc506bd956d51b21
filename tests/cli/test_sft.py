"""`minift sft` on a tiny model: the run, the refusals, Ctrl-C, going on."""

from __future__ import annotations

import json
import os
import signal

import pytest

from minift.train import step


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
