"""`minift quickstart` with a tiny model and a few reviews in place of the real ones."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest

from minift.checkpoints.open import headers, load
from minift.cli import quickstart, training
from minift.data.read import open_records
from minift.data.split import Rows
from minift.train import step


@pytest.fixture
def reviews(tiny_model, tmp_path, monkeypatch):
    """A few of them and a tiny model in place of the real ones."""
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "".join(f"a film {i},{i % 2}\n" for i in range(40)))
    records = open_records(
        table,
        template="Review: {text}\nSentiment:",
        target="label",
        labels=["negative", "positive"],
    )
    halves = Rows(records, np.arange(30)), Rows(records, np.arange(30, 40))
    monkeypatch.setattr(training, "headers", lambda name: headers(tiny_model))
    monkeypatch.setattr(training, "load", lambda name, **given: load(tiny_model, **given))
    monkeypatch.setattr(quickstart, "published_reviews", lambda path, source: halves)
    monkeypatch.setattr(quickstart.assets, "cached", lambda name: table)
    monkeypatch.setattr(quickstart.assets, "download", lambda name, say=None: table)


def test_the_five_stages(cli, reviews, tmp_path):
    words = ["quickstart", "--out", tmp_path / "out", "--steps", 3]
    code, text, _ = cli(*words)
    assert code == 0
    for stage in ("1/5 fetch", "2/5 look     30 train · 10 test · 50 % positive", "3/5 before",
                  "4/5 train", "5/5 after", "the critic: ", "saved        ", "next  "):  # fmt: skip
        assert stage in text
    assert text.count("the critic: ") == 3
    assert text.count("  wrote ") == 6
    assert (tmp_path / "out/adapter/adapter_config.json").exists()
    code, _, err = cli(*words)
    assert code == 2
    assert "holds a run already" in err
    code, text, _ = cli(*words, "--overwrite", "--limit", 4, "--json")
    data = json.loads(text)
    assert (code, data["rows"]) == (0, 4)
    assert 0 <= data["before"] <= 1


def test_ctrl_c_in_training_saves_and_in_the_before_does_not(cli, reviews, tmp_path, monkeypatch):
    honest = step.accumulate_gradients

    def pressed(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return honest(*arguments)

    monkeypatch.setattr(step, "accumulate_gradients", pressed)
    words = ["quickstart", "--steps", 3, "--out"]
    code, text, _ = cli(*words, tmp_path / "a")
    assert code == 130
    assert "interrupted  after 1 of 3 steps; the adapter saved is that of step 1" in text
    assert "5/5" not in text
    assert (tmp_path / "a/adapter/adapter_config.json").exists()

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "measure_answers", interrupted)
    code, _, err = cli(*words, tmp_path / "b", "--quiet")
    assert (code, err) == (130, "minift: interrupted\n")
    assert not (tmp_path / "b").exists()
