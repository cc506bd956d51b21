"""The data set that the options name: as typed, else as in training."""

from __future__ import annotations

import pytest

from minift.cli.commands import COMMANDS
from minift.cli.datasets import open_labelled_texts, open_prompts
from minift.cli.options import parse
from minift.errors import Notice
from minift.tokenizers.text_format import TextFormat


def parsed(command, *words):
    return parse(words, None, COMMANDS[command].options)


@pytest.fixture
def table(tmp_path) -> str:
    path = tmp_path / "t.csv"
    path.write_text("text,title,label\nfine,old,1\nweak,new,0\n")
    return str(path)


def test_prompts_are_made_by_the_template_that_is_typed(table):
    words = ["--template", r"{text}\nWord:", "--target", "label", "--labels", "bad,good"]
    records = open_prompts(parsed("sft", *words, "--limit", "1"), table)
    assert [(row["prompt"], row["completion"]) for row in records] == [("fine\nWord:", " good")]


def test_prompts_are_made_as_in_training_where_no_template_is_typed(table):
    texts = TextFormat(template="{title}:", target="label", labels=("bad", "good"))
    with pytest.warns(Notice, match="is read by the template of training, '{title}:'"):
        records = open_prompts(parsed("eval"), table, texts)
    assert [row["prompt"] for row in records] == ["old:", "new:"]
    records = open_prompts(parsed("eval", "--template", "{text}?"), table, texts)
    assert [row["prompt"] for row in records] == ["fine?", "weak?"]


def test_data_of_another_kind_are_read_as_they_are(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    texts = TextFormat(template="{title}:", target="label")
    assert open_prompts(parsed("eval"), str(path), texts)[0]["prompt"] == "a"


def test_a_classifiers_texts_need_no_template_and_keep_that_of_training(table):
    labels = ("bad", "good")
    records = open_labelled_texts(parsed("classify"), labels, TextFormat(), table)
    assert [row["prompt"] for row in records] == ["fine", "weak"]
    texts = TextFormat(template="{title}", pair="{text}")
    records = open_labelled_texts(parsed("classify"), labels, texts, table)
    assert (str(records.template), records.pair) == ("{title}", "{text}")
    records = open_labelled_texts(parsed("classify", "--template", "{text}"), labels, texts, table)
    assert (str(records.template), records.pair) == ("{text}", None)
