"""`minift generate` on a tiny model."""

from __future__ import annotations

import io
import json

from minift.checkpoints.open import load
from minift.cli import generate as command
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


def test_an_adapter_can_be_talked_to(cli, run_folder):
    code, _, err = cli("generate", "1:", "--adapter", run_folder, "--max-new-tokens", 2)
    assert (code, err) == (0, "")


def test_a_prompt_over_the_context_is_refused(cli, tiny_model):
    code, _, err = cli("generate", "word " * 300, "--model", tiny_model)
    assert code == 2
    assert "128" in err


def test_stops_and_the_prompt_are_read_as_a_template_is(cli, tiny_model, monkeypatch):
    heard = []

    def noted(model, tokenizer, prompts, **options):
        heard.append((prompts[0], options["stop"]))
        return ["x"]

    monkeypatch.setattr(command, "continue_text", noted)
    for prompt, stops in ((r"a\nb\\n", ("\\n", ",", " is ")), ("- a", ("\n",))):
        words = [word for stop in stops for word in ("--stop", stop)]
        assert cli("generate", prompt, "--model", tiny_model, *words)[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(r"from\n here" + "\n\n"))
    assert cli("generate", "-", "--model", tiny_model)[0] == 0
    assert cli("generate", "--model", tiny_model, "--", "--x")[0] == 0
    assert heard == [
        ("a\nb\\n", ["\n", ",", " is "]), ("- a", ["\n"]), (r"from\n here" + "\n", []), ("--x", []),
    ]  # fmt: skip
