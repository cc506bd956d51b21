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


CHAT = ["--chat-template", "chatml", "--max-new-tokens", 4]


def test_chat_as_json_is_one_object_a_line(cli, tiny_model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff one \n\ntwo\n"))
    code, text, err = cli("chat", "--model", tiny_model, *CHAT, "--json")
    assert (code, err) == (0, "")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [row["prompt"] for row in rows] == ["one", "two"]
    assert all(set(row) == {"prompt", "answer"} for row in rows)


def test_a_message_over_the_context_is_not_sent_and_the_chat_goes_on(cli, tiny_model, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("word " * 300 + "\nshort\n"))
    code, text, err = cli("chat", "--model", tiny_model, *CHAT, "--json")
    assert (code, [json.loads(line)["prompt"] for line in text.splitlines()]) == (0, ["short"])
    assert err.startswith("minift: this message is ")
    assert err.endswith("allowed 124: the context less --max-new-tokens; it was not sent\n")


def test_stops_and_the_prompt_are_read_as_a_template_is(cli, tiny_model, monkeypatch):
    heard = []

    def noted(model, tokenizer, prompts, **options):
        heard.append((prompts[0], options["stop"]))
        return ["x"]

    monkeypatch.setattr(talk, "continue_text", noted)
    for prompt, stops in ((r"a\nb\\n", ("\\n", ",", " is ")), ("- a", ("\n",))):
        words = [word for stop in stops for word in ("--stop", stop)]
        assert cli("generate", prompt, "--model", tiny_model, *words)[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(r"from\n here" + "\n\n"))
    assert cli("generate", "-", "--model", tiny_model)[0] == 0
    assert cli("generate", "--model", tiny_model, "--", "--x")[0] == 0
    assert heard == [
        ("a\nb\\n", ["\n", ",", " is "]), ("- a", ["\n"]), (r"from\n here" + "\n", []), ("--x", []),
    ]  # fmt: skip


def test_an_empty_system_text_is_a_system_turn(cli, tiny_model, monkeypatch):
    seen = []

    def noted(model, tokenizer, prompts, **options):
        seen.append(tokenizer.decode(prompts[0], skip_special=False))
        return ["x"]

    monkeypatch.setattr(talk, "continue_text", noted)
    for more in ([], ["--system", ""]):
        monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
        assert cli("chat", "--model", tiny_model, *CHAT, *more)[0] == 0
    assert ["system" in text for text in seen] == [False, True]
