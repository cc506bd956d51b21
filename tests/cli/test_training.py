"""What every training command does: whose --out is whose, what is refused before any work."""

from __future__ import annotations

import os
import shutil
import threading

import pytest

from minift.train.run_folder import claim


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
    monkeypatch.delattr(f"minift.cli.{command}.train_and_held_out")
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
    monkeypatch.delattr("minift.cli.training.load")
    (tmp_path / "file").write_text("mine")
    words = () if command == "quickstart" else ("--model", "m", "--data", data)
    words += ("--labels", "a,b") if command == "classify" else ()
    code, _, err = cli(command, *words, "--out", tmp_path / "file" / "run")
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
