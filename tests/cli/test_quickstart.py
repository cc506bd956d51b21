"""`minift quickstart` with a tiny model and a few reviews in place of the real ones."""

from __future__ import annotations

import json

import numpy as np

from minift.checkpoints.open import load
from minift.cli import quickstart
from minift.data.read import open_records
from minift.data.split import Rows


def test_the_five_stages(cli, tiny_model, tmp_path, monkeypatch):
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "".join(f"a film {i},{i % 2}\n" for i in range(40)))
    records = open_records(
        table,
        template="Review: {text}\nSentiment:",
        target="label",
        labels=["negative", "positive"],
    )
    halves = Rows(records, np.arange(30)), Rows(records, np.arange(30, 40))
    monkeypatch.setattr(quickstart, "load", lambda name, **given: load(tiny_model, **given))
    monkeypatch.setattr(quickstart, "published_reviews", lambda path, source: halves)
    monkeypatch.setattr(quickstart.assets, "cached", lambda name: table)
    monkeypatch.setattr(quickstart.assets, "download", lambda name, say=None: table)
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
