"""`minift info` of models, adapters and runs, and every folder that is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import minift
from minift.checkpoints.families import FAMILIES
from minift.checkpoints.open import load
from minift.formats import safetensors


def test_info_of_a_model_and_of_a_run(cli, tiny_model, run_folder):
    code, text, _ = cli("info", tiny_model)
    assert code == 0
    assert "2 layers · width 16 · feed-forward 32 · 4 heads of 4, 2 kv heads" in text
    code, text, _ = cli("info", run_folder)
    assert code == 0
    assert "LoRA r=2 alpha=16 on all linears" in text
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


# ---- what is refused: exit code 2, one line, with a list below it where there is one -------------


@pytest.fixture
def folder(tmp_path, tiny_model):
    """`folder(**fields)`: a copy of the tiny model, fields of its config.json changed."""

    def make(**fields):
        place = tmp_path / "model"
        shutil.copytree(tiny_model, place)
        config = json.loads((place / "config.json").read_text()) | fields
        (place / "config.json").write_text(json.dumps(config))
        return place

    return make


def refused(cli, *words):
    """What a command says when it refuses."""
    code, text, err = cli(*words)
    assert (code, text) == (2, "")
    assert err.startswith("minift: ")
    first, *more = err.rstrip("\n").split("\n")
    assert all(line.startswith("  ") for line in more)
    assert first.isprintable()
    return err


def test_a_family_that_minift_does_not_know_is_told_those_it_knows(cli, folder):
    err = refused(cli, "info", folder(model_type="mamba"))
    assert (
        f"model_type: found mamba, allowed a family that minift knows: {', '.join(FAMILIES)}" in err
    )
    assert err.count("\n") == 1


def test_every_disagreement_of_config_and_tensors_is_listed(cli, folder, data):
    place = folder(hidden_size=24, num_hidden_layers=3, vocab_size=701)
    err = refused(cli, "info", place)
    assert "missing model.layers.2.self_attn.q_proj.weight" in err
    assert "model.embed_tokens.weight is (700, 16), not (701, 24)" in err
    assert "model.norm.weight is (16,), not (24,)" in err
    assert refused(cli, "verify", place) == err
    assert refused(cli, "eval", "--model", place, "--data", data) == err


def test_a_tokenizer_that_does_not_fit_the_embedding(cli, folder):
    place = folder()
    data = json.loads((place / "tokenizer.json").read_text())
    data["model"]["vocab"]["<more>"] = 700
    (place / "tokenizer.json").write_text(json.dumps(data))
    err = refused(cli, "info", place)
    assert "tokenizer: found 701 tokens, allowed at most the embedding's 700" in err
    assert err.count("\n") == 1


def test_a_folder_with_two_formats_says_which_is_taken_and_why(cli, folder):
    place = folder()
    file = safetensors.read(place / "model.safetensors")
    torch.save({name: file.load(name) for name in file.tensors}, place / "pytorch_model.bin")
    code, text, _ = cli("info", place)
    assert code == 0
    taken = "model.safetensors, not pytorch_model.bin: safetensors come first, then .bin"
    assert f"weights      {taken}" in text
    (place / "model.safetensors").write_bytes(b"")  # the other is no way out
    assert "model.safetensors: file: found an empty file" in refused(cli, "info", place)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("nowhere", "no model, file or folder"),
        ("x" * 300, "File name too long"),
        ("a\x1b[2Jb", r"a\x1b[2Jb"),
        ("two\nlines", r"two\nlines"),
        ("/dev/null", "not a plain file"),
    ],
)
def test_names_that_are_no_model(cli, name, text):
    assert text in refused(cli, "info", name)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"", "found an empty file"),
        (b"[]", "found list, allowed an object"),
        (b'{"model_type": "llama", "model_type": "llama"}', "twice"),
        (b'{"a": NaN}', "found NaN"),
        (b'{"a": ' + b"[" * 100_000, "deeper nesting"),
        (b'{"a": ' + b"1" * 5000 + b"}", "at most 64 digits"),
        (b"\xff\xfe{\0}\0", "allowed UTF-8"),
        (b"{" + b" " * (1 << 20) + b"}", "at most 1,048,576 bytes"),
        (b'{"model_type": "\\u001b[2J\\u202e"}', r"found \x1b[2J\u202e"),
    ],
)
def test_a_config_that_is_no_configuration(cli, folder, raw, text):
    place = folder()
    (place / "config.json").write_bytes(raw)
    err = refused(cli, "info", place)
    assert text in err
    assert err.count("\n") == 1


def test_a_configuration_at_its_limit_and_over_it(cli, folder):
    place = folder()
    raw = (place / "config.json").read_bytes()
    (place / "config.json").write_bytes(raw + b" " * ((1 << 20) - len(raw)))
    assert cli("info", place)[0] == 0
    (place / "config.json").write_bytes(raw + b" " * ((1 << 20) - len(raw) + 1))
    assert "found 1,048,577 bytes" in refused(cli, "info", place)


def test_layers_at_what_the_file_holds_and_over_it(cli, folder):
    place = folder(num_hidden_layers=20)  # of 20 tensors: each missing one is listed
    assert refused(cli, "info", place).count("missing ") == 18 * 9
    (place / "config.json").write_text(
        (place / "config.json").read_text().replace(": 20", ": 10000")
    )
    assert "found 10,000 layers" in refused(cli, "info", place)


@pytest.mark.parametrize(
    ("end", "raw"),
    [
        (".gguf", b"GGUF"), (".gguf", b"GGML" + bytes(60)), (".gguf", b""),
        (".safetensors", bytes(8)), (".safetensors", b"\xff" * 100),
        (".bin", b"\x80\x02}q\0."), (".bin", b"PK\3\4"), (".index.json", b"{}"),
    ],
)  # fmt: skip
def test_weight_files_that_are_none(cli, tmp_path, end, raw):
    name = "model.safetensors" if end == ".index.json" else "w"
    (tmp_path / f"{name}{end}").write_bytes(raw)
    assert refused(cli, "info", tmp_path / f"{name}{end}").count("\n") == 1


def test_what_files_call_things_does_not_steer_the_terminal(cli, run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(r'{"steps": "\u001b[2J", "final_loss": "\n\u202e"}')
    code, text, _ = cli("info", tmp_path / "run")
    assert code == 0
    assert r"run          \x1b[2J steps · loss \n\u202e" in text
    config = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    config["base_model_name_or_path"] = "\x1b]0;x\x07"
    (tmp_path / "run/adapter/adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "run/adapter/minift.json").unlink()
    text = cli("info", tmp_path / "run")[1]
    assert "\x1b" not in text
    assert r"base \x1b]0;x\x07" in text


def test_a_place_to_write_that_no_disk_has(cli, tiny_model, run_folder, data, tmp_path):
    out = tmp_path / ("x" * 300)
    for words in (
        ("export", tiny_model, "--to", "gguf", "--out", f"{out}.gguf"),
        ("merge", run_folder, "--out", out),
        (
            "sft",
            "--model",
            tiny_model,
            "--data",
            data,
            "--out",
            out,
            "--steps",
            "1",
            "--batch-size",
            "2",
        ),
    ):
        code, _, err = cli(*words, "--quiet")
        assert code == 2
        assert "File name too long" in err.splitlines()[-1]


def test_a_run_that_was_killed_says_so_wherever_a_run_is_asked_for(tmp_path, cli):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "steps": 9, "loss": 1.0}\n')
    wanted = f'minift: "{tmp_path}": unfinished run, no adapter saved\n'
    for words in (
        ("info", tmp_path),
        ("merge", tmp_path, "--out", tmp_path / "m"),
        ("export", tmp_path, "--out", tmp_path / "m.gguf"),
        ("eval", "--adapter", tmp_path, "--data", "x"),
        ("generate", "--adapter", tmp_path, "x"),
    ):
        assert cli(*words) == (2, "", wanted), words[0]


def test_a_run_that_trained_a_whole_model_stands_for_it(cli, tiny_model, tmp_path):
    model, tokenizer = load(tiny_model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    objective = minift.SFT(tokenizer, [{"prompt": "a", "completion": " b"}] * 4)
    minift.fit(model, objective, minift.TrainConfig(steps=1, lr=1e-4), tmp_path / "run")
    code, text, err = cli("info", tmp_path / "run")
    assert (code, err) == (0, "")
    assert f"file         {tmp_path}/run/model" in text
    assert "run          1 steps" in text
    again, _ = load(tmp_path / "run")
    pairs = zip(again.parameters(), model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    code, _, err = cli("merge", tmp_path / "run", "--out", tmp_path / "out")
    assert code == 2
    assert err.endswith(f"is a run that trained no adapter: its model is {tmp_path}/run/model\n")
    assert cli("export", tmp_path / "run", "--to", "hf", "--out", tmp_path / "out")[0] == 0
