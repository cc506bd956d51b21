"""`minift generate` and `chat` on a tiny model."""

from __future__ import annotations

import io
import json

from minift import runtime
from minift.checkpoints.open import load
from minift.cli import talk
from minift.generation.decode import generate


def test_generate_prints_the_text_and_nothing_else(cli, tiny_model):
    words = ["generate", "The movie", "--model", tiny_model, "--max-new-tokens", 5,
             "--dtype", "float32"]  # fmt: skip
    code, text, err = cli(*words)
    assert (code, err) == (0, "")
    model, tokenizer = load(tiny_model)
    expected = generate(model, tokenizer, ["The movie"], max_new_tokens=5)
    assert text.removesuffix("\n") == expected[0]
    data = json.loads(cli(*words, "--json")[1])
    assert data == {"prompt": "The movie", "text": text.removesuffix("\n")}


def test_samples_are_numbered_and_differ_by_their_draws(cli, tiny_model):
    words = ["generate", "The movie", "--model", tiny_model, "--max-new-tokens", 5, "--samples", 3,
             "--temperature", 2, "--dtype", "float32"]  # fmt: skip
    code, text, err = cli(*words)
    assert (code, err) == (0, "")
    model, tokenizer = load(tiny_model)
    expected = generate(model, tokenizer, ["The movie"] * 3, max_new_tokens=5, temperature=2.0)
    assert text == "".join(f"--- {i} of 3\n{one}\n" for i, one in enumerate(expected, 1))
    data = json.loads(cli(*words, "--json")[1])
    assert data == {"prompt": "The movie", "texts": expected}
    code, _, err = cli(*words[:8])
    assert code == 2
    assert "samples: found 3 at temperature 0" in err


def test_a_base_that_every_token_decodes_is_named(cli, tiny_model, monkeypatch):
    monkeypatch.setattr(runtime, "advice", lambda *settings: [])  # on a machine without bf16 units
    words = ["generate", "The movie", "--model", tiny_model, "--max-new-tokens", 2, "--base"]
    code, _, err = cli(*words, "nf4", "--dtype", "bf16")
    assert (code, err) == (0, "minift: base nf4 is decoded for every token: "
                              "nf4 has no product of its own\n")  # fmt: skip
    code, _, err = cli(*words, "int8", "--dtype", "float32")
    assert (code, err.count("\n")) == (0, 1)
    assert "the work is in float32, which needs --dtype bf16" in err
    code, _, err = cli(*words, "int8", "--dtype", "bf16")
    assert (code, "rows of 16 are no multiple of 32" in err) == (0, True)


def test_an_adapter_can_be_talked_to(cli, run_folder):
    code, _, err = cli("generate", "1:", "--adapter", run_folder, "--max-new-tokens", 2)
    assert (code, err) == (0, "")


def test_a_prompt_over_the_context_is_refused(cli, tiny_model):
    code, _, err = cli("generate", "word " * 300, "--model", tiny_model)
    assert code == 2
    assert "128" in err


def test_an_answer_without_text_does_not_end_the_chat(cli, tiny_model, monkeypatch):
    asked = []

    def silent(model, tokenizer, prompts, **options):
        asked.append(tokenizer.decode(prompts[0], skip_special=False))
        return [" \n"]

    monkeypatch.setattr(talk, "continue_text", silent)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\n"))
    code, _, err = cli("chat", "--model", tiny_model, "--chat-template", "chatml",
                       "--max-new-tokens", 4)  # fmt: skip
    assert (code, err) == (0, "")
    assert ["one" in asked[0], "one" in asked[1], "two" in asked[1]] == [True, False, True]


def test_chat_answers_every_line_and_forgets_the_oldest(cli, tiny_model, monkeypatch):
    typed = "".join(f"this is question number {i}\n\n" for i in range(6))
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    asked = []

    def counted(model, tokenizer, prompts, **options):
        asked.append(len(prompts[0]))
        assert asked[-1] + 4 <= model.config.context
        return ["an answer of a few words"]

    monkeypatch.setattr(talk, "continue_text", counted)
    words = ["--model", tiny_model, "--max-new-tokens", 4, "--chat-template", "chatml"]
    code, text, err = cli("chat", *words)
    assert (code, err) == (0, "")
    assert text.count("\n") >= 6
    assert len(asked) == 6
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, _, err = cli("chat", *words[:2], "--max-new-tokens", 128)
    assert code == 2
    assert "no room in a context of 128" in err
