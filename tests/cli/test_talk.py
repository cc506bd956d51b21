"""`minift generate` and `chat` on a tiny model."""

from __future__ import annotations

import io
import json

from minift.checkpoints.open import load
from minift.generate.decode import generate


def test_generate_prints_the_text_and_nothing_else(cli, tiny_model):
    words = ["generate", "The movie", "--model", tiny_model, "--max-new-tokens", 5,
             "--dtype", "float32"]  # fmt: skip
    code, text, err = cli(*words)
    assert (code, err) == (0, "")
    model, tokenizer = load(tiny_model)
    expected = generate(model, tokenizer, "The movie", max_new_tokens=5)
    assert text.removesuffix("\n") == (expected if isinstance(expected, str) else expected[0])
    data = json.loads(cli(*words, "--json")[1])
    assert data == {"prompt": "The movie", "text": text.removesuffix("\n")}


def test_an_adapter_can_be_talked_to(cli, run_folder):
    code, _, err = cli("generate", "1:", "--adapter", run_folder, "--max-new-tokens", 2)
    assert (code, err) == (0, "")


def test_a_prompt_over_the_context_is_refused(cli, tiny_model):
    code, _, err = cli("generate", "word " * 300, "--model", tiny_model)
    assert code == 2
    assert "128" in err


def test_chat_answers_every_line_and_forgets_the_oldest(cli, tiny_model, monkeypatch):
    typed = "".join(f"this is question number {i}\n\n" for i in range(6))
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    words = ["--model", tiny_model, "--max-new-tokens", 4, "--chat-template", "chatml"]
    code, text, err = cli("chat", *words)
    assert (code, err) == (0, "")
    assert text.count("\n") >= 6
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, err = cli("chat", *words[:2], "--max-new-tokens", 128)
    assert code == 2
    assert "no room in a context of 128" in err
