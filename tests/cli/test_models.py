"""Which model the options mean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from minift.checkpoints.tokenizers import tokenizer_in
from minift.cli import models
from minift.cli.main import main
from minift.errors import Notice
from minift.interop.adapter_files import stored
from minift.runtime import Machine, Rates


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
    (tmp_path / "minift.json").unlink()
    code, _, err = cli("eval", "--adapter", tmp_path, "--data", data)
    assert code == 2
    assert "add --model" in err


@pytest.mark.parametrize(("units", "expected"), [(True, "bf16"), (False, "float32")])
def test_auto_is_what_the_processor_has_units_for(monkeypatch, units, expected):
    monkeypatch.setattr(models, "machine", lambda threads=None: Machine(2, False, units))
    assert models.base_dtype("auto") == expected
    assert models.base_dtype("float64") == "float64"


def test_the_headline_names_versions_and_fits():
    assert "torch 2." in models.headline()


def test_the_headline_fits_a_line(monkeypatch):
    monkeypatch.setattr(models, "machine", lambda threads=None: Machine(64, True, True))
    monkeypatch.setattr(models, "rates", lambda threads=None: Rates(478.4, 921.2))
    line = models.headline()
    assert line.endswith("· 64 threads · float32 by oneDNN 478 GFLOP/s, bf16 921 · self-tested")
    assert len(line) <= 100


@pytest.fixture(scope="module")
def nf4_run(tiny_model, tmp_path_factory):
    """A run of three steps on a base in NF4."""
    folder = tmp_path_factory.mktemp("nf4")
    rows = [{"prompt": f"{i}:", "completion": " yes"} for i in range(8)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"sft --model {tiny_model} --data {folder}/d.jsonl --out {folder}/out --steps 3"
    rest = "--batch-size 2 --rank 2 --lr 0.05 --quiet --dtype float32 --base nf4 --threads 1"
    assert main([*words.split(), *rest.split()]) == 0
    return folder / "out"


def test_a_run_says_which_base_it_had(nf4_run, run_folder):
    assert json.loads((nf4_run / "run.json").read_text())["base"] == "nf4"
    assert json.loads((run_folder / "run.json").read_text())["base"] == "dense"
    dense, small = (json.loads((r / "run.json").read_text()) for r in (run_folder, nf4_run))
    assert dense["parameters"] == small["parameters"]


def test_sft_shows_what_the_base_is_made_of(cli, tiny_model, data, tmp_path):
    code, text, _ = cli("sft", "--model", tiny_model, "--data", data, "--out", tmp_path / "out",
                        "--steps", 1, "--base", "int8", "--threads", 1)  # fmt: skip
    assert code == 0
    assert "base         int8 · linears: 14 int8 · " in text
    assert "float32 on int8" in text


def test_an_adapter_is_used_on_the_base_it_was_trained_on(cli, nf4_run, data):
    words = ["eval", "--adapter", nf4_run, "--data", data, "--dtype", "float32", "--json"]
    found = {base: json.loads(cli(*words, *given)[1])["loss"] for base, given in (
        ("as trained", ()), ("nf4", ("--base", "nf4")), ("dense", ("--base", "dense")),
        ("int8", ("--base", "int8")))}  # fmt: skip
    assert found["as trained"] == found["nf4"]
    assert len(set(found.values())) == 3
    inside = ["eval", "--adapter", nf4_run / "adapter", *words[3:]]
    assert json.loads(cli(*inside)[1])["loss"] == found["nf4"]


def test_talking_merging_and_going_on_are_too(cli, nf4_run, data, tmp_path):
    for command in ("generate", "merge", "export"):
        words = {
            "generate": ["1:", "--adapter", nf4_run, "--max-new-tokens", 2],
            "merge": [nf4_run, "--out", tmp_path / "merged", "--dtype", "float32"],
            "export": [nf4_run, "--out", tmp_path / "x.gguf", "--dtype", "F32"],
        }[command]
        code, text, err = cli(command, *words)
        slow = "minift: base nf4 is decoded for every token: nf4 has no product of its own\n"
        said = [line for line in err.splitlines(True) if "as in its training" not in line]
        assert (code, "".join(said)) == (0, slow if command == "generate" else "")
        if command == "merge":
            assert "dense, from the nf4 base" in text
    losses = []
    for given in (["--adapter", nf4_run], ["--model", tmp_path / "merged"],
                  ["--model", tmp_path / "x.gguf"]):  # fmt: skip
        words = ["eval", *given, "--data", data, "--dtype", "float32", "--json"]
        losses.append(json.loads(cli(*words)[1])["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    code, text, _ = cli("sft", "--model", json.loads((nf4_run / "run.json").read_text())["model"],
                        "--data", data, "--out", tmp_path / "on", "--steps", 1, "--threads", 1,
                        "--adapter", nf4_run)  # fmt: skip
    assert code == 0
    assert "base         nf4" in text


def test_a_base_that_is_not_there_is_one_line(cli, tiny_model, data, tmp_path):
    for command, rest in (("sft", ["--data", data, "--out", tmp_path / "o"]),
                       ("eval", ["--data", data]), ("generate", ["hi"]), ("chat", [])):  # fmt: skip
        for base, text in (("int4", "--base: found int4, allowed dense, int8, nf4, gguf"),
                           ("gguf", "base: gguf keeps a .gguf file's blocks")):  # fmt: skip
            code, _, err = cli(command, *rest, "--model", tiny_model, "--base", base)
            assert code == 2
            assert text in err
            assert err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_a_run_of_an_older_version_means_a_dense_base(nf4_run, tmp_path):
    shutil.copytree(nf4_run, tmp_path / "out")
    facts = json.loads((tmp_path / "out/run.json").read_text())
    assert models.base_kind(None, stored(tmp_path / "out")) == "nf4"
    assert models.base_kind("dense", stored(tmp_path / "out")) is None
    del facts["base"]
    (tmp_path / "out/run.json").write_text(json.dumps(facts))
    assert models.base_kind(None, stored(tmp_path / "out")) is None
    assert models.base_kind(None) is None


@pytest.mark.parametrize("room", [True, False])
def test_an_adapters_tokenizer_needs_a_row_for_each_token(tiny_model, run_folder, tmp_path, room):
    shutil.copytree(Path(run_folder) / "adapter", folder := tmp_path / "adapter")
    for file in Path(tiny_model).glob("*token*"):
        shutil.copy(file, folder)
    base = tokenizer_in(Path(tiny_model))
    assert models.with_new_tokens(base, stored(folder), base.vocab_size) is base
    data = json.loads((folder / "tokenizer.json").read_text())
    more = {"id": base.vocab_size, "content": "[PAD]", "special": True}
    data["added_tokens"].append(dict(data["added_tokens"][0]) | more)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.warns(Notice, match="is used: it has" if room else "of the base is used"):
        own = models.with_new_tokens(base, stored(folder), base.vocab_size + room)
    assert own.vocab_size == base.vocab_size + room
