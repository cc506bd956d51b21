"""`minift export`: one line that says what was written and what it cost."""

from __future__ import annotations

import json

import torch

from minift.checkpoints.open import load
from minift.formats import gguf
from minift.interop.adapter_files import load_adapter
from minift.peft.merge import merge


def test_a_model_as_gguf(cli, tiny_model, tmp_path):
    out = tmp_path / "x.gguf"
    code, text, _ = cli("export", tiny_model, "--dtype", "F32", "--out", out)
    assert code == 0
    assert text.count("\n") == 1
    assert text.startswith(f"exported     {out} · F32, ")
    assert "logits within 0.0e+00, mean KL 0.0e+00" in text
    assert "greedy text the same for 3 of 3" in text
    code, _, err = cli("export", tiny_model, "--out", out)
    assert code == 2
    assert "exists; choose another, or --overwrite" in err
    code, text, _ = cli("export", tiny_model, "--out", out, "--overwrite", "--json")
    assert code == 0
    assert json.loads(text)["kind"] == "F16"


def test_a_run_is_merged_and_its_adapter_can_go_alone(cli, tiny_model, run_folder, tmp_path):
    assert (
        cli("export", run_folder, "--to", "gguf", "--dtype", "F32", "--out", tmp_path / "m")[0] == 0
    )
    merged = merge(load_adapter(load(tiny_model)[0], run_folder))
    for one, two in zip(merged.parameters(), load(tmp_path / "m")[0].parameters(), strict=True):
        assert torch.equal(one, two)
    out = tmp_path / "lora.gguf"
    code, text, _ = cli("export", run_folder / "adapter", "--to", "gguf-lora", "--out", out)
    assert code == 0
    assert "logits within 0.0e+00" in text
    assert gguf.read(out).metadata["adapter.type"] == "lora"
    assert cli("export", run_folder, "--to", "hf", "--out", tmp_path / "folder")[0] == 0
    assert (tmp_path / "folder/config.json").exists()


def test_an_encoder_as_a_folder(cli, tiny_encoder, tmp_path):
    out = tmp_path / "x"
    code, text, err = cli("export", tiny_encoder, "--to", "hf", "--out", out)
    assert (code, err) == (0, "")
    assert text.startswith(f"exported     {out} · float32, ")
    assert "read back: hidden states within 0.0e+00 on " in text
    assert text.count("\n") == 1
    code, text, _ = cli("export", tiny_encoder, "--to", "hf", "--out", out, "--overwrite", "--json")
    assert json.loads(text)["kl"] is None
    code, _, err = cli("export", tiny_encoder, "--to", "gguf", "--out", tmp_path / "g")
    assert (code, err.count("\n")) == (2, 1)
    assert not (tmp_path / "g").exists()


def test_a_classifier_as_a_folder(cli, tiny_encoder, reviews, tmp_path):
    run, out = tmp_path / "run", tmp_path / "x"
    words = f"classify --model {tiny_encoder} --data {reviews} --labels bad,good --out {run}"
    assert cli(*words.split(), "--steps", "2", "--batch-size", "4", "--quiet")[0] == 0
    code, text, _ = cli("export", run, "--to", "hf", "--out", out)
    assert code == 0
    assert "read back: scores within " in text
    assert "label the same for 3 of 3" in text
    assert load(out)[0].config.labels == ("bad", "good")
    code, _, err = cli("export", run, "--to", "gguf", "--out", tmp_path / "g")
    assert code == 2
    assert "is a classifier: --to hf writes a folder" in err


def test_what_cannot_be_is_one_line(cli, tiny_model, tmp_path):
    for words, text in (
        (("export", tiny_model), "--out is missing"),
        (("export", tiny_model, "--to", "gguf-lora", "--out", tmp_path / "x"), "needs an adapter"),
        (("export", tiny_model, "--to", "pt", "--out", tmp_path / "x"), 'to: found "pt"'),
        (("export", tmp_path / "none", "--out", tmp_path / "x"), "no model, file or folder"),
    ):
        code, _, err = cli(*words)
        assert code == 2
        assert text in err
        assert err.count("\n") == 1
