"""`minift merge`: a plain model that says the same; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from minift.checkpoints.open import load
from minift.formats import safetensors
from minift.interop.adapter_files import load_adapter


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


def test_a_merge_that_loses_too_much_is_refused_unless_forced(cli, run_folder, tmp_path):
    words = ("merge", run_folder, "--dtype", "bf16", "--max-kl", "0", "--out", tmp_path / "m")
    code, _, err = cli(*words)
    assert code == 2
    assert "nats from the adapted one (mean KL), allowed 0; --dtype float32 rounds less" in err
    assert not (tmp_path / "m").exists()
    assert cli(*words, "--force")[0] == 0
    assert (tmp_path / "m" / "model.safetensors").exists()


def with_number(folder, copy, part, value):
    """A copy of a folder in which the first number of one tensor is another."""
    shutil.copytree(folder, copy)
    place = next(copy.rglob("*.safetensors"))
    file = safetensors.read(place)
    tensors = {name: file.load(name).clone() for name in file.tensors}
    name = next(name for name in tensors if part in name)
    tensors[name][0, 0] = value
    safetensors.write(place, tensors, file.metadata)
    return copy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_by_name(cli, tiny_model, run_folder, tmp_path, value):
    base = with_number(Path(tiny_model), tmp_path / "base", "layers.1.mlp.up_proj", value)
    run = with_number(run_folder, tmp_path / "run", "layers.1.mlp.down_proj.lora_B", value)
    ours = 'merge: tensor "blocks.1.mlp.hidden.up.weight" holds a weight that is not finite'
    theirs = 'export: tensor "blocks.1.mlp.hidden.up.weight" holds'
    for words, text in (
        (("merge", run_folder, "--model", base), ours),
        (("merge", run_folder, "--model", base, "--force"), ours),
        (("merge", run), "lora_B.weight: found NaN or infinity, allowed finite numbers"),
        (("export", base, "--to", "hf"), theirs),
        (("export", base, "--to", "gguf"), theirs),
        (("export", run_folder, "--model", base, "--to", "gguf-lora"), theirs),
    ):
        code, out, err = cli(*words, "--out", tmp_path / "out")
        *said, problem = err.splitlines()
        assert (code, out, len(said)) == (2, "", "--model" in words)
        assert all("--model names" in line for line in said)
        assert text in problem
    assert {path.name for path in tmp_path.iterdir()} == {"base", "run"}


def test_merge_of_numbers_that_overflow_in_the_model_writes_nothing(cli, run_folder, tmp_path):
    run, out = with_number(run_folder, tmp_path / "run", "lora_B", 1e38), tmp_path / "out"
    code, text, err = cli("merge", run, "--out", out, "--force")
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert "gives numbers that are not finite" in err
    assert not out.exists()
