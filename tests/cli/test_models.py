"""Which model the options mean."""

from __future__ import annotations

import json

import pytest

from minift.cli import models


def test_the_adapter_knows_its_base(cli, run_folder, tiny_model, data):
    words = ["eval", "--adapter", run_folder, "--data", data, "--dtype", "float32", "--json"]
    code, text, _ = cli(*words)
    assert code == 0
    named = cli(*words, "--model", tiny_model)[1]
    assert json.loads(text) == json.loads(named)
    base = cli("eval", "--model", tiny_model, "--data", data, "--dtype", "float32", "--json")[1]
    assert json.loads(text)["loss"] != json.loads(base)["loss"]


def test_an_adapter_without_a_base_asks_for_one(cli, run_folder, data, tmp_path):
    for path in (run_folder / "adapter").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    code, _, err = cli("eval", "--adapter", tmp_path, "--data", data)
    assert code == 2
    assert "add --model" in err


@pytest.mark.parametrize(("prefers", "expected"), [(True, "bf16"), (False, "float32")])
def test_auto_is_what_is_faster_here(monkeypatch, prefers, expected):
    found = type("Found", (), {"prefers_bf16": prefers})()
    monkeypatch.setattr(models, "machine", lambda threads=None: found)
    assert models.base_dtype("auto") == expected
    assert models.base_dtype("float64") == "float64"


def test_the_headline_names_versions_and_fits():
    line = models.headline()
    assert line.startswith("minift ")
    assert "torch 2." in line
    assert len(line) <= 120
