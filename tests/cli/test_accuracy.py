"""Accuracy beside a bar: the same numbers as without one, and a bar that ends."""

from __future__ import annotations

import pytest

from minift.checkpoints.labels import with_labels
from minift.checkpoints.open import load
from minift.cli.accuracy import accuracy_data, measure_answers, measure_classes
from minift.cli.commands import COMMANDS
from minift.cli.console import Console
from minift.cli.options import parse
from minift.data.read import open_records
from minift.train.evaluation.labels import class_accuracy, label_accuracy


@pytest.fixture
def eval_options():
    return parse(["--threads", "1"], None, COMMANDS["eval"].options)


def test_answers(eval_options, tiny_model, reviews, capsys):
    model, tokenizer = load(tiny_model)
    labels = ["bad", "good"]
    records = open_records(reviews, template="{text}:", target="label", labels=labels, limit=6)
    found, scores = measure_answers(eval_options, Console(), model, tokenizer, records, None)
    expected, _ = label_accuracy(model, tokenizer, records, threads=1)
    assert (found, scores.shape) == (expected, (6, 2))
    assert "6/6 rows" in capsys.readouterr().err


def test_classes(eval_options, tiny_encoder, reviews, capsys):
    model, tokenizer = load(tiny_encoder)
    model = with_labels(model, ("bad", "good"), seed=0)
    records = open_records(
        reviews, template="{text}", target="label", labels=("bad", "good"), limit=6
    )
    found = measure_classes(eval_options, Console(), model, tokenizer, records, max_length=16)
    expected, _ = class_accuracy(model, tokenizer, records, max_length=16, threads=1)
    assert found == expected
    assert accuracy_data(found) == {
        "accuracy": found.share, "interval": list(found.interval), "rows": 6,
    }  # fmt: skip
    assert "6/6 texts" in capsys.readouterr().err
