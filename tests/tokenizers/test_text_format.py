"""What a run decided about texts: written, read strictly, and used by a tokenizer."""

from __future__ import annotations

import copy
import json
from functools import partial
from typing import Any

import pytest

from minift.checkpoints.tokenizers import text_format_in, text_format_of
from minift.errors import ConfigError, FormatError
from minift.tokenizers import chat
from minift.tokenizers.text_format import (
    FILE,
    KEY,
    LONGEST_TEXT,
    TextFormat,
    apply,
    choose,
    end_names,
)

WHOLE = TextFormat(
    chat_template="{{ messages[0].content }}<|im_end|>", ends=("<|im_end|>", "</s>"),
    system="Be brief.", template="Review: {text}\nSentiment:", target="label", pair="{other}",
    labels=("bad", "good"), max_length=64,
)  # fmt: skip


def test_what_is_written_is_read_again():
    assert TextFormat.from_json(WHOLE.as_json(), "f") == WHOLE
    assert TextFormat().as_json() == {}
    assert TextFormat.from_json({}, "f") == TextFormat()
    assert TextFormat(max_length=9).as_json() == {"max_length": 9}


def test_a_folder_and_a_gguf_file_say_the_same(tmp_path):
    (tmp_path / FILE).write_text(json.dumps({"texts": WHOLE.as_json(), "base": "x"}))
    assert text_format_in(tmp_path) == WHOLE
    assert text_format_of({KEY: json.dumps(WHOLE.as_json())}, "m.gguf") == WHOLE
    assert text_format_of({}, "m.gguf") is None
    (tmp_path / FILE).unlink()
    assert text_format_in(tmp_path) is None


def test_what_a_later_version_adds_is_buffer():
    assert TextFormat.from_json({"tools": ["a"], "system": "S"}, "f") == TextFormat(system="S")


BAD: list[Any] = [
    None, [], "text", {"system": 5}, {"system": ""}, {"system": ["a"]}, {"labels": "ab"},
    {"labels": [1, 2]}, {"labels": [""]}, {"ends": {"a": 1}}, {"max_length": 1},
    {"max_length": True}, {"max_length": 1.5}, {"max_length": "9"}, {"template": True},
    {"chat_template": "x" * (LONGEST_TEXT + 1)},
]  # fmt: skip


@pytest.mark.parametrize("data", BAD, ids=[str(data)[:40] for data in BAD])
def test_what_is_no_such_thing_is_refused(data):
    with pytest.raises(FormatError, match=r"^f: texts"):
        TextFormat.from_json(data, "f")


def hostile():
    """For tests/hostile.py."""

    def attempt(folder, raw):
        (folder / FILE).write_bytes(raw)
        text_format_in(folder)

    cases = {
        "empty": (b"", "bad-json"), "a list": (b"[]", "bad-type"), "no JSON": (b"{", "bad-json"),
        "no text": (b"\xff", "bad-utf8"), "deep": (b"[" * 100_000, "limit"),
        "blanks": (b" " * (2 << 20), "bad-json"),
    }  # fmt: skip
    for data in BAD:
        cases[f"texts {data!s:.40}"] = (json.dumps({"texts": data}).encode(), "bad-type")
    return {name: (partial(attempt, raw=raw), code) for name, (raw, code) in cases.items()}


@pytest.fixture
def tokenizer(tiny_tokenizer):
    """One's own, which may be changed."""
    return copy.copy(tiny_tokenizer)


def test_a_tokenizer_writes_and_ends_as_in_training(tokenizer):
    tokenizer.chat_template = "plain"
    before = chat.ends(tokenizer)
    names = [name for name, i in tokenizer.special.items() if i not in before]
    source = "{% for m in messages %}{{ m.role + m.content + eos_token }}{% endfor %}"
    apply(tokenizer, TextFormat(chat_template=source, ends=(*names[:1], "<|not here|>")))
    assert tokenizer.template == source
    assert tokenizer.chat_template is None
    assert chat.jinja(tokenizer) == source
    added = {tokenizer.special[name] for name in names[:1]}
    assert added <= chat.ends(tokenizer)
    assert end_names(tokenizer)[0] == tokenizer.token_bytes(tokenizer.eos).decode()
    found = TextFormat(system="S").by(tokenizer)
    assert (found.chat_template, found.system) == (source, "S")
    assert set(names[:1]) <= set(found.ends)


def test_a_named_template_in_place_of_another_is_told(tokenizer):
    tokenizer.template, tokenizer.chat_template = None, None
    assert not choose(tokenizer, None)
    assert not choose(tokenizer, "plain")  # there was none
    apply(tokenizer, TextFormat(chat_template=chat.jinja(tokenizer)))
    assert not choose(tokenizer, "plain")  # the same again
    apply(tokenizer, TextFormat(chat_template="{{ messages[0].content }}"))
    assert choose(tokenizer, "plain")
    with pytest.raises(ConfigError, match="--chat-template"):
        choose(tokenizer, "no such one")


def test_lines_for_a_person():
    assert WHOLE.lines() == [
        "chat template: {{ messages[0].content }}<|im_end|>", "answers end at: <|im_end|>, </s>",
        "system: Be brief.", "prompts: Review: {text}\\nSentiment:", "answers: label",
        "second text: {other}", "labels: bad, good", "longest: 64 tokens",
    ]  # fmt: skip
