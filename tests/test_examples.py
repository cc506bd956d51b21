"""Every example runs: with a tiny model here, with the real one and --small in .ci/run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minift.checkpoints.save import save
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def folder(tiny_tokenizer, tmp_path_factory) -> Path:
    """A tiny model, a table of reviews and a corpus of conversations."""
    config = ModelConfig("llama", tiny_tokenizer.vocab_size, 16, 2, 4, 2, 4, 32, 256, tied=True)
    model = Transformer(config)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.1) if parameter.dim() == 2 else None
    folder = tmp_path_factory.mktemp("examples")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "chatml")  # saved with the model
    save(model, tiny_tokenizer, folder / "model")
    monkeypatch.undo()
    rows = [f'"a film, number {i}",{i % 2},rotten_tomatoes\n' for i in range(80)]
    (folder / "reviews.csv").write_text("text,label,source\n" + "".join(rows))
    (folder / "english").mkdir()
    talk = ["- - Hello\n  - Hi there\n", "- - Hello\n  - Hi there\n", "- - Alone\n"]
    talk += [f"- - Question {i}?\n  - A long answer,\n    wrapped {i}.\n" for i in range(40)]
    (folder / "english" / "talk.yml").write_text("categories:\n- Talk\n" + "".join(talk))
    return folder


CASES = {
    "sentiment.py": ("reviews.csv", ("before  ", "loss    ", "after   ", "Sentiment:' -> '")),
    "chatbot.py": ("", ("43 conversations, 41 of them", "held out ", "What is AI?", "  after ")),
}


def test_every_example_has_a_case():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_example(name, folder, tmp_path):
    data, expected = CASES[name]
    words = ["--model", folder / "model", "--data", folder / data, "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), "--small", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout
    assert (tmp_path / "run/adapter/adapter_config.json").exists()
