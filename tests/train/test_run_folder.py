"""A run's folder: refused, held while a run goes on, and cleared of minift's own records only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from minift.errors import ConfigError, Notice, StorageError
from minift.formats import safetensors
from minift.train import run_folder
from minift.train.run_folder import (
    LOCK,
    TrainableFiles,
    check_out,
    check_weights,
    claim,
    clear,
    make_room,
)

STEP = json.dumps({"step": 1, "steps": 2, "loss": 0.5}) + "\n"
FACTS = json.dumps({"steps": 2, "versions": {"minift": "0.1"}})


def finished(folder: Path) -> Path:
    """What a run of minift's leaves."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True)
    (folder / "run.json").write_text(FACTS)
    (folder / "metrics.jsonl").write_text(STEP)
    (adapter / "adapter_config.json").write_text("{}")
    mark = {"format": "pt"} | safetensors.MARK
    safetensors.write(adapter / "adapter_model.safetensors", {"a": torch.zeros(1)}, mark)
    return folder


def test_a_run_gives_way_only_if_told(tmp_path):
    folder = finished(tmp_path / "r")
    with pytest.raises(ConfigError, match="holds a run already; choose another, or --overwrite"):
        check_out(folder, False)
    check_out(folder, True)
    clear(folder)
    assert not os.listdir(folder)


def test_foreign_files_of_a_run_folder_stay(tmp_path):
    folder = finished(tmp_path / "r")
    (folder / "notes.csv").write_text("mine")
    (folder / "plots" / "old").mkdir(parents=True)
    with claim(folder, True):
        clear(folder)
    assert sorted(os.listdir(folder)) == ["notes.csv", "plots"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "mine"),
        ("run.json", '{"versions": {"torch": "2"}}'),
        ("run.json", "[]"),
        ("metrics.jsonl", "mine"),
        ("metrics.jsonl", '{"accuracy": 1}\n'),
        ("metrics.jsonl", '"step steps loss"\n'),
        ("metrics.jsonl", "\udcff"),
        ("adapter", "mine"),
        ("adapter/notes.csv", "mine"),
        ("adapter/.hidden", "mine"),
        ("adapter/adapter_model.safetensors", "mine"),
    ],
)
def test_somebody_elses_file_by_a_name_of_ours_is_refused_by_name(name, text, tmp_path):
    place = finished(tmp_path / "r") / name
    if name == "adapter":
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
    place.write_text(text, errors="surrogateescape")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="which minift did not write") as told:
            check_out(tmp_path / "r", overwrite)
        assert f"holds {place.name}" in str(told.value)
    assert place.read_text(errors="surrogateescape") == text


def test_a_folder_in_place_of_a_record_is_refused(tmp_path):
    (tmp_path / "run.json").mkdir()
    with pytest.raises(ConfigError, match=r"holds run\.json, which minift did not write"):
        check_out(tmp_path, True)


@pytest.mark.parametrize("text", ["", STEP, STEP[:20], STEP * 3 + STEP[:5]])
def test_the_records_of_a_killed_run_are_its_own(text, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    check_out(tmp_path, True)


def test_a_folder_of_data_takes_a_run_only_if_told(tmp_path):
    (tmp_path / "notes.csv").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes\.csv, which minift did not write"):
        check_out(tmp_path, False)
    check_out(tmp_path, True)
    with pytest.raises(ConfigError, match="is a file, allowed a folder"):
        check_out(tmp_path / "notes.csv", True)
    with pytest.raises(StorageError, match="cannot write"):
        check_out(tmp_path / "notes.csv" / "r", True)


def test_what_comes_into_the_adapter_of_a_run_that_goes_on_is_moved_beside_it(tmp_path):
    adapter = finished(tmp_path / "r") / "adapter"
    ours = {path.name: path.read_bytes() for path in adapter.iterdir()}
    make_room(adapter)
    make_room(tmp_path / "r" / "none yet")
    assert sorted(os.listdir(tmp_path / "r")) == ["adapter", "metrics.jsonl", "run.json"]
    (adapter / ".DS_Store").write_text("mine")
    (adapter / "deep").mkdir()
    (adapter / "deep" / "file").write_text("mine")
    with pytest.warns(Notice, match=r"\.DS_Store, deep came in while the run went on"):
        make_room(adapter)
    assert {path.name: path.read_bytes() for path in adapter.iterdir()} == ours
    (beside,) = (tmp_path / "r").glob("minift-kept-*")
    assert (beside / ".DS_Store").read_text() == (beside / "deep" / "file").read_text() == "mine"


def of_full_training(folder: Path) -> Path:
    """What a run leaves that trained no adapter."""
    (folder / "model").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(json.loads(FACTS) | {"weights": "model"}))
    (folder / "metrics.jsonl").write_text(STEP)
    (folder / "model/config.json").write_text("{}")
    mark = {"format": "pt"} | safetensors.MARK
    safetensors.write(folder / "model/model.safetensors", {"a": torch.zeros(1)}, mark)
    return folder


def test_the_model_of_full_training_gives_way_only_if_told(tmp_path):
    folder = of_full_training(tmp_path / "r")
    with pytest.raises(ConfigError, match="holds a run already"):
        check_out(folder, False)
    check_out(folder, True)
    clear(folder)
    assert not os.listdir(folder)


@pytest.mark.parametrize("name", ["notes.csv", ".hidden", "pytorch_model.bin"])
def test_a_foreign_file_in_the_model_of_a_run_is_refused_by_name(name, tmp_path):
    folder = of_full_training(tmp_path / "r")
    (folder / "model" / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds {name}, which minift did not write"):
        check_out(folder, True)
    with pytest.warns(Notice, match=f"{name} came in while the run went on"):
        make_room(folder / "model")
    check_out(folder, True)


@pytest.mark.parametrize("record", [None, FACTS])
def test_a_model_that_no_run_json_claims_stays(record, tmp_path):
    folder = of_full_training(tmp_path / "r")
    (folder / "run.json").unlink()
    if record is not None:
        (folder / "run.json").write_text(record)
    check_out(folder, True)
    clear(folder)
    assert sorted(os.listdir(folder / "model")) == ["config.json", "model.safetensors"]
    files = TrainableFiles("model", 0, lambda path: None)
    with pytest.raises(ConfigError, match="holds model, which minift did not write"):
        check_weights(folder, files)
    check_weights(folder, TrainableFiles("adapter", 0, lambda path: None))


# ---- the lock ------------------------------------------------------------------------------------

HOLD = """
import sys, time
from minift.train.run_folder import claim
with claim(sys.argv[1], False):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds tmp_path / "r"."""
    env = os.environ | {"PYTHONPATH": str(Path(run_folder.__file__).parents[2])}
    command = [sys.executable, "-c", HOLD, str(tmp_path / "r")]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused_and_told_of_the_first(other, tmp_path):
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match=f"another run writes .*, process {other.pid};"):
            claim(tmp_path / "r", overwrite).__enter__()
    assert os.listdir(tmp_path / "r") == [LOCK]


def test_a_dead_runs_lock_holds_nobody_up(other, tmp_path):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with claim(tmp_path / "r", False) as folder:
        assert (folder / LOCK).read_text() == f"{os.getpid()}\n"
    assert os.listdir(tmp_path / "r") == []


def test_a_thread_may_claim_again_what_it_has_and_another_may_not(tmp_path):
    told = []

    def second():
        try:
            with claim(tmp_path / "r", False):
                told.append("held")
        except ConfigError as error:
            told.append(str(error))

    with claim(tmp_path / "r", False), claim(tmp_path / "." / "r", False):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert f"another run writes {tmp_path}/r, process {os.getpid()}" in told[0]
    second()
    assert told[1] == "held"


def test_a_folder_that_nothing_was_written_to_is_gone_again(tmp_path):
    with claim(tmp_path / "a" / "b", False) as folder:
        assert folder.is_dir()
    assert not os.listdir(tmp_path)
    with claim(tmp_path / "a" / "b", False) as folder:
        (folder / "metrics.jsonl").write_text(STEP)
    assert os.listdir(tmp_path / "a" / "b") == ["metrics.jsonl"]


def test_a_users_own_file_by_the_locks_name_stays(tmp_path):
    (tmp_path / LOCK).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds {LOCK}, which minift did not write"):
        claim(tmp_path, True).__enter__()
    assert (tmp_path / LOCK).read_text() == "mine"
