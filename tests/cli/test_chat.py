"""`minift chat` on a tiny model."""

from __future__ import annotations

import io
import json

from minift.cli import chat


def test_an_answer_without_text_does_not_end_the_chat(cli, tiny_model, monkeypatch):
    asked = []

    def silent(model, tokenizer, prompts, **options):
        asked.append(tokenizer.decode(prompts[0], skip_special=False))
        return [" \n"]

    monkeypatch.setattr(chat, "continue_text", silent)
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

    monkeypatch.setattr(chat, "continue_text", counted)
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


def test_an_empty_system_text_is_a_system_turn(cli, tiny_model, monkeypatch):
    seen = []

    def noted(model, tokenizer, prompts, **options):
        seen.append(tokenizer.decode(prompts[0], skip_special=False))
        return ["x"]

    monkeypatch.setattr(chat, "continue_text", noted)
    for more in ([], ["--system", ""]):
        monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
        assert cli("chat", "--model", tiny_model, *CHAT, *more)[0] == 0
    assert ["system" in text for text in seen] == [False, True]
