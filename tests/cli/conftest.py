"""A tiny model's folder and a tiny data set, for commands that need both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minift.checkpoints.save import save
from minift.cli.main import main
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.tokenizers.wordpiece import WordPiece


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer, tmp_path_factory) -> str:
    """A random Llama of two layers with the tests' tokenizer, as a Hugging Face folder."""
    config = ModelConfig(
        family="llama", vocab=tiny_tokenizer.vocab_size, dim=16, layers=2, heads=4, kv_heads=2,
        head_dim=4, ff=32, context=128, tied=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.1)
    path = tmp_path_factory.mktemp("tiny") / "model"
    save(model, tiny_tokenizer, path)
    return str(path)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory) -> str:
    """A random BERT of two layers with a pooler and a WordPiece of a few words."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a good bad film number 0 1 2 3 4 5 6 7 8 9"
    words += " " + " ".join(f"##{i}" for i in range(10))
    tokenizer = WordPiece.from_vocab("\n".join(words.split()) + "\n", None, "vocab.txt")
    config = ModelConfig(
        family="bert", vocab=tokenizer.vocab_size, dim=16, layers=2, heads=4, kv_heads=4,
        head_dim=4, ff=32, context=32, norm="layer", norm_at="post", final_norm=False, act="gelu",
        gated=False, causal=False, positions="learned", embed_norm=True, token_types=2,
        qkv_bias=True, out_bias=True, mlp_bias=True, head="none", pooler=True, pool="first",
        label_bias=True,
    )  # fmt: skip
    torch.manual_seed(1)
    model = Transformer(config)
    path = tmp_path_factory.mktemp("encoder") / "model"
    save(model, tokenizer, path)
    return str(path)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> str:
    """A table whose label is told by one word."""
    path = tmp_path_factory.mktemp("reviews") / "reviews.csv"
    rows = [f"a {('bad', 'good')[i % 2]} film {i},{i % 2}\n" for i in range(60)]
    path.write_text("text,label\n" + "".join(rows))
    return str(path)


@pytest.fixture
def data(tmp_path) -> str:
    """Eight rows of prompt and completion."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Review: number {i}.\nSentiment:", "completion": " good"} for i in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="session")
def run_folder(tiny_model, tmp_path_factory) -> Path:
    """A finished run of three steps on the tiny model."""
    folder = tmp_path_factory.mktemp("run")
    rows = [{"prompt": f"{i}:", "completion": " yes"} for i in range(8)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = folder / "out"
    words = f"sft --model {tiny_model} --data {folder}/d.jsonl --out {out} --steps 3 --batch-size 2"
    assert main([*words.split(), "--quiet", "--rank", "2", "--lr", "0.05"]) == 0
    return out


@pytest.fixture
def cli(capsys, monkeypatch):
    """`cli("sft", ...)`: the exit code, stdout and stderr of a command, its lines not broken."""

    def run(*words: object, width: int = 10_000) -> tuple[int, str, str]:
        monkeypatch.setattr("minift.cli.console.WIDTH", width)
        monkeypatch.delenv("COLUMNS", raising=False)
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
