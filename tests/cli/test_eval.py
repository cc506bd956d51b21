"""`minift eval`: loss of rows, accuracy of labels."""

from __future__ import annotations

import json
import math

import pytest
import torch

from minift.checkpoints.open import load


def test_loss_is_the_mean_over_the_answers_tokens(cli, tiny_model, tmp_path):
    rows = [("a", " good"), ("Review: long.\n", " not so bad at all")]
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": p, "completion": c}) for p, c in rows]
    path.write_text("\n".join(lines) + "\n")
    words = ["eval", "--model", tiny_model, "--data", path, "--dtype", "float32"]
    code, text, _ = cli(*words, "--json")
    assert code == 0
    model, tokenizer = load(tiny_model)
    total, count = 0.0, 0
    for prompt, completion in rows:  # by hand, one row at a time
        head, tail = tokenizer.encode(prompt), [*tokenizer.encode(completion), tokenizer.eos]
        with torch.no_grad():
            logp = model(torch.tensor([head + tail]))[0].log_softmax(-1)
        for k, token in enumerate(tail):
            total -= float(logp[len(head) + k - 1, token])
            count += 1
    data = json.loads(text)
    assert data["rows"] == 2
    assert data["loss"] == pytest.approx(total / count, abs=1e-4)
    assert data["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-3)
    assert f"loss         {total / count:.4f}"[:17] in cli(*words)[1]


def test_accuracy_where_there_are_labels(cli, tiny_model, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("text,label\n" + "".join(f"number {i},0\n" for i in range(4)))
    words = ["eval", "--model", tiny_model, "--data", table, "--template", "{text}:",
             "--target", "label", "--labels", "bad,good"]  # fmt: skip
    code, text, _ = cli(*words, "--json")
    assert code == 0
    bad = json.loads(text)
    table.write_text(table.read_text().replace(",0\n", ",1\n"))
    good = json.loads(cli(*words, "--json")[1])
    assert bad["rows"] == good["rows"] == 4
    assert bad["accuracy"] + good["accuracy"] == 1  # one of two words is always the likelier
    low, high = bad["interval"]
    assert 0 <= low < high <= 1
    assert low - 1e-9 <= bad["accuracy"] <= high + 1e-9
    assert "accuracy" in cli(*words)[1]
