"""`minift classify` and what follows it: eval, info, merge, going on, and every refusal."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal

import pytest
import torch

from minift.checkpoints.labels import with_labels
from minift.checkpoints.open import load
from minift.checkpoints.save import save
from minift.cli.main import main
from minift.formats import safetensors
from minift.interop.adapter_files import TENSORS, adapter_files, load_adapter, save_adapter
from minift.peft.lora import LoRA
from minift.peft.merge import merge
from minift.peft.methods import attach
from minift.train import step
from minift.train.evaluation.labels import class_accuracy
from minift.train.objectives.classification import Classification

LABELS = "bad,good"


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def base(kind, tiny_encoder, tiny_model):
    return tiny_encoder if kind == "encoder" else tiny_model


@pytest.fixture(scope="module")
def run(base, reviews, tmp_path_factory):
    """A classifier that was trained on rows made by a template."""
    out = tmp_path_factory.mktemp("classifier") / "out"
    words = f"classify --model {base} --data {reviews} --labels {LABELS} --out {out} --steps 40"
    words = [*words.split(), "--template", "number 7 {text}", "--target", "label", "--quiet"]
    assert main([*words, "--lr", "0.03", "--batch-size", "12", "--dtype", "float32"]) == 0
    return out


def refused(result, *parts):
    code, _, err = result
    assert (code, err.count("\n")) == (2, 1), err
    for part in parts:
        assert part in err


def test_a_base_in_few_bits_is_trained_and_evaluated_as_such(cli, tiny_encoder, reviews, tmp_path):
    out = tmp_path / "out"
    code, text, _ = cli("classify", "--model", tiny_encoder, "--data", reviews, "--labels", LABELS,
                        "--out", out, "--steps", 3, "--base", "nf4", "--held-out", reviews,
                        "--limit", 12)  # fmt: skip
    assert code == 0
    assert "base         nf4 · linears: " in text
    assert json.loads((out / "run.json").read_text())["base"] == "nf4"
    after = re.search(r"after +accuracy (\S+ %)", text).group(1)
    code, text, _ = cli("eval", "--adapter", out, "--data", reviews, "--limit", 12)
    assert code == 0
    assert f"accuracy     {after}" in text


def test_a_run_says_what_it_does(cli, tiny_encoder, reviews, tmp_path):
    out = tmp_path / "out"
    code, text, _ = cli("classify", "--model", tiny_encoder, "--data", reviews, "--labels", LABELS,
                        "--out", out, "--steps", 3, "--method", "ia3")  # fmt: skip
    assert code == 0
    assert "[CLS] a bad film 0 [SEP]   ▐bad▌   ▐trained▌" in text
    assert "held out · labels bad, good" in text
    assert "train        IA3 on k,v,down" in text
    for line in ("data  ", "before       accuracy ", "after        accuracy ", "saved  ", "next  "):
        assert line in text
    assert {p.name for p in out.iterdir()} == {"adapter", "metrics.jsonl", "run.json"}
    facts = json.loads((out / "run.json").read_text())["data"]
    assert (facts["labels"], facts["template"], facts["target"]) == (
        ["bad", "good"], "{text}", "label"
    )  # fmt: skip


def test_a_classifier_brings_its_labels_and_its_template(cli, run, base, reviews):
    code, text, _ = cli("eval", "--adapter", run, "--data", reviews)
    assert code == 0
    assert "texts        number 7 {text}   labels bad, good" in text
    assert "accuracy     100.0 %" in text
    data = json.loads(cli("eval", "--adapter", run, "--data", reviews, "--json")[1])
    assert (data["accuracy"], data["rows"], data["labels"]) == (1.0, 60, ["bad", "good"])
    assert data["interval"][0] > 0.9
    assert cli("eval", "--adapter", run, "--data", reviews, "--labels", LABELS)[0] == 0
    code, text, _ = cli("info", run)
    assert code == 0
    assert "labels       bad, good" in text


def test_the_adapter_alone_brings_its_labels(cli, run, reviews, tmp_path):
    shutil.copytree(run / "adapter", tmp_path / "alone")
    code, text, _ = cli("eval", "--adapter", tmp_path / "alone", "--data", reviews,
                        "--template", "number 7 {text}")  # fmt: skip
    assert code == 0
    assert "accuracy     100.0 %" in text
    assert "{text}   labels" in cli("eval", "--adapter", tmp_path / "alone", "--data", reviews)[1]


def test_merging_makes_a_plain_classifier(cli, run, base, reviews, tmp_path):
    out = tmp_path / "merged"
    code, text, _ = cli("merge", run, "--out", out, "--dtype", "float32")
    assert code == 0
    assert "largest score difference" in text
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "bad", "1": "good"}
    assert config["architectures"][0].endswith("ForSequenceClassification")
    template = ["--template", "number 7 {text}"]
    code, text, _ = cli("eval", "--model", out, "--data", reviews, *template)
    assert (code, "accuracy     100.0 %" in text) == (0, True)
    model, tokenizer = load(out)
    rows = [{"text": "number 7 a good film 1", "label": "good"}]
    one = class_accuracy(model, tokenizer, rows)[1]
    from minift.checkpoints.labels import with_labels

    adapted = load_adapter(with_labels(load(base)[0], ("bad", "good")), run)
    torch.testing.assert_close(one, class_accuracy(adapted, tokenizer, rows)[1])


def test_going_on_keeps_labels_and_shape(cli, run, base, reviews, tmp_path):
    words = ["classify", "--model", base, "--data", reviews, "--adapter", run, "--steps", 1,
             "--dtype", "float32", "--json"]  # fmt: skip
    code, text, _ = cli(*words, "--out", tmp_path / "more")
    assert code == 0
    data = json.loads(text)
    assert (data["labels"], data["before"]) == (["bad", "good"], 1.0)
    facts = json.loads((tmp_path / "more/run.json").read_text())
    assert facts["data"]["template"] == "number 7 {text}"
    refused(cli(*words, "--out", tmp_path / "x", "--labels", "no,yes"), "no, yes", "bad, good")
    refused(cli(*words, "--out", tmp_path / "x", "--rank", 2), "--rank does not go with --adapter")


@pytest.mark.parametrize("words", [["generate", "a film"], ["chat"]], ids=lambda w: w[0])
def test_a_classifier_writes_no_text(cli, run, words, tmp_path):
    refused(cli(*words, "--adapter", run), "is a classifier of bad, good, which writes no text")
    assert cli("merge", run, "--out", tmp_path / "merged")[0] == 0
    refused(cli(*words, "--model", tmp_path / "merged"), "is a classifier of bad, good")


def test_a_classifier_is_not_exported_as_a_language_model(cli, run, tmp_path):
    refused(cli("export", run, "--out", tmp_path / "x.gguf"), "is a classifier", "minift merge")
    assert not list(tmp_path.iterdir())


def test_labels_that_are_not_the_classifiers_are_refused(cli, run, reviews):
    words = ["eval", "--adapter", run, "--data", reviews]
    refused(cli(*words, "--labels", "good,bad"), "labels: found good, bad, and", "has bad, good")


def test_a_language_model_adapter_is_no_classifier(cli, run_folder, reviews, tmp_path, tiny_model):
    words = ["classify", "--model", tiny_model, "--data", reviews, "--out", tmp_path / "x"]
    refused(cli(*words, "--adapter", run_folder, "--labels", LABELS), "is no classifier")


def test_a_folder_without_names_has_numbered_ones_or_those_that_are_given(
    cli, run, base, reviews, tmp_path
):
    """As PEFT writes one."""
    shutil.copytree(run / "adapter", tmp_path / "theirs")
    place = tmp_path / "theirs" / TENSORS
    file = safetensors.read(place)
    tensors = {key: file.load(key).clone() for key in file.tensors}
    place.write_bytes(
        b"".join(bytes(part) for part in safetensors.encode(tensors, {"format": "pt"}))
    )
    words = ["eval", "--adapter", tmp_path / "theirs", "--data", reviews,
             "--template", "number 7 {text}"]  # fmt: skip
    assert "labels LABEL_0, LABEL_1" in cli(*words)[1]
    refused(cli(*words, "--labels", "a,b,c"), "found 3 names")
    code, text, _ = cli(*words, "--labels", LABELS)
    assert (code, "accuracy     100.0 %" in text) == (0, True)


@pytest.mark.parametrize(
    ("table", "options", "parts"),
    [
        ("text,label\na,fair\n", [], ["line 2", 'field "label"', '"fair"', "bad, good or 0 to 1"]),
        ("text,label\na,\n", [], ["line 2", 'field "label"']),
        ("text,label\n,1\n", [], ["line 2", 'field "text"', "an empty text"]),
        ("text\na\n", [], ["no column label"]),
        ("review,label\na,1\n", [], ["no column text"]),
        ("text,label\na,1\n", ["--target", "stars"], ["no column stars"]),
        ("text,label\na,1\n", ["--labels", "good"], ["two or more different words"]),
        ("text,label\na,1\n", ["--method", "lara"], ['--method: found "lara"', "nearest: lora"]),
        ("text,label\na,1\n", ["--prefix-tokens", "2"], ["belongs to the method prefix"]),
        ("text,label\na,1\nb,1\n", ["--max-length", "33"], ["--max-length: found 33", "32"]),
        ("text,label\na,1\n", ["--max-length", "2"], ["--max-length: found 2"]),
        ("text,label\na,1\n", ["--held-out", "none.csv"], ["none.csv"]),
    ],
)
def test_wrong_data_and_settings_leave_nothing(cli, tiny_encoder, tmp_path, table, options, parts):
    path = tmp_path / "rows.csv"
    path.write_text(table)
    words = ["classify", "--model", tiny_encoder, "--data", path, "--out", tmp_path / "out"]
    given = [] if "--labels" in options else ["--labels", LABELS]
    refused(cli(*words, *given, *options), *parts)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.parametrize("missing", ["--model", "--data", "--labels", "--out"])
def test_what_is_missing_is_asked_for(cli, tiny_encoder, reviews, tmp_path, missing):
    words = {"--model": tiny_encoder, "--data": reviews, "--labels": LABELS,
             "--out": str(tmp_path / "out")}  # fmt: skip
    given = [word for pair in words.items() if pair[0] != missing for word in pair]
    example = "" if missing == "--labels" else "; for example: minift classify"
    refused(cli("classify", *given), f"minift: {missing}", f"is missing{example}")


def test_long_texts_are_cut_and_counted(cli, tiny_encoder, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{'a film ' * 30}{i},{i % 2}\n" for i in range(9)))
    code, text, _ = cli("classify", "--model", tiny_encoder, "--data", path, "--labels", LABELS,
                        "--out", tmp_path / "out", "--steps", 1, "--held-out-share", 0)  # fmt: skip
    assert code == 0
    assert " cut to " in text  # to the model's context, 32
    assert "before" not in text


def test_the_same_words_give_the_same_bytes(cli, tiny_encoder, reviews, tmp_path):
    words = ["classify", "--model", tiny_encoder, "--data", reviews, "--labels", LABELS,
             "--steps", 2, "--threads", 1, "--quiet"]  # fmt: skip
    for name in ("one", "two"):
        assert cli(*words, "--out", tmp_path / name)[0] == 0
    one, two = ((tmp_path / name / "adapter" / TENSORS).read_bytes() for name in ("one", "two"))
    assert one == two


def test_what_is_saved_is_what_peft_names(run, base, kind):
    from minift.checkpoints.labels import with_labels

    model = load_adapter(with_labels(load(base)[0], ("bad", "good")), run)
    head = "classifier" if kind == "encoder" else "score"
    names = set(safetensors.read(run / "adapter" / TENSORS).tensors)
    assert f"base_model.model.{head}.weight" in names
    config = json.loads(adapter_files(model, "default")["adapter_config.json"])
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", [head])
    assert Classification(None, [{"text": "a", "label": 0}], labels=("bad", "good")).rows == 1


def test_an_encoder_is_sent_here(cli, tiny_encoder, data, tmp_path):
    out = tmp_path / "out"
    words = ["sft", "--model", tiny_encoder, "--data", data, "--out", out]
    refused(cli(*words), "is no language model: minift classify")
    assert not out.exists()


def test_pairs_are_read_again_as_in_training(cli, tiny_encoder, tmp_path):
    table = tmp_path / "pairs.csv"
    rows = [f"a film {i},{('bad', 'good')[i % 2]},{i % 2}\n" for i in range(20)]
    table.write_text("one,two,label\n" + "".join(rows))
    out = tmp_path / "out"
    words = ["classify", "--model", tiny_encoder, "--data", table, "--labels", LABELS, "--out", out]
    words += ["--template", "{one}", "--pair", "{two}", "--steps", "2", "--batch-size", "4"]
    code, text, _ = cli(*words)
    assert code == 0
    assert re.search(r"\[CLS\] a film .*\[SEP\] (bad|good) \[SEP\]", text)
    assert json.loads((out / "run.json").read_text())["data"]["pair"] == "{two}"
    code, text, _ = cli("eval", "--adapter", out, "--data", table)
    assert code == 0
    assert "texts        {one} and {two}   labels bad, good\n" in text
    refused(cli("eval", "--adapter", out, "--data", table, "--pair", "{three}"), "no column three")
    refused(cli("eval", "--adapter", out, "--data", table, "--pair", "{label}"), "shows the target")


def test_two_columns_of_their_own_names_are_a_pair(cli, tiny_encoder, tmp_path):
    table, out = tmp_path / "pairs.csv", tmp_path / "out"
    table.write_text("text,text_pair,label\n" + "a film,good,1\na,bad film,0\n" * 4)
    words = ["classify", "--model", tiny_encoder, "--data", table, "--labels", LABELS, "--out", out]
    assert cli(*words, "--steps", "1", "--batch-size", "4")[0] == 0
    assert "texts        {text} and {text_pair}   labels" in cli("eval", "--adapter", out, "--data",
                                                                  table)[1]  # fmt: skip


def test_two_texts_are_for_classifiers(cli, tiny_model, data):
    refused(cli("eval", "--model", tiny_model, "--data", data, "--pair", "{a}"), "--pair is for")


EVIL = ("bad\x1b[2J\n\u202e", "good" + "x" * 10_000)


@pytest.fixture(scope="module")
def evil_run(tiny_encoder, tmp_path_factory):
    """A classifier whose files call its labels something that would steer a terminal."""
    folder = tmp_path_factory.mktemp("evil")
    model, tokenizer = load(tiny_encoder)
    model = attach(with_labels(model, EVIL), LoRA(rank=2))
    save_adapter(model, folder / "adapter")
    merged = merge(model)
    save(merged, tokenizer, folder / "merged")
    rows = [{"text": "a film \x1b[2J\r\u202e", "label": i % 2} for i in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = [*rows, {"text": "a", "label": "\x1b[2J"}]
    (folder / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bad))
    return folder


def test_names_in_files_do_not_steer_the_terminal(cli, evil_run, tiny_encoder):
    adapter, merged, rows = evil_run / "adapter", evil_run / "merged", evil_run / "rows.jsonl"
    go_on = ("classify", "--model", tiny_encoder, "--adapter", adapter, "--data", rows,
             "--held-out", rows, "--steps", "1", "--batch-size", "2", "--overwrite")  # fmt: skip
    for words, right in (
        (("info", adapter), 0),
        (("info", merged), 0),
        (("verify", merged), 0),
        (("eval", "--adapter", adapter, "--model", tiny_encoder, "--data", rows), 0),
        (("eval", "--model", merged, "--data", rows), 0),
        (("eval", "--model", merged, "--data", evil_run / "bad.jsonl"), 2),
        (("eval", "--model", merged, "--data", rows, "--labels", "a,b"), 2),
        (("eval", "--model", merged, "--data", rows, "--pair", "{c}"), 2),
        (("chat", "--model", merged), 2),
        (("chat", "--adapter", adapter, "--model", tiny_encoder), 2),
        (("generate", "a", "--model", merged), 2),
        (("explain", "lora", "--model", merged), 0),
        ((*go_on, "--out", evil_run / "out"), 0),
        (("export", merged, "--to", "hf", "--out", evil_run / "x"), 0),
        (("merge", adapter, "--model", tiny_encoder, "--out", evil_run / "m"), 0),
    ):
        code, out, err = cli(*words)
        assert code == right, (words, err)
        shown = (out + err).split("\n")
        assert all(line.isprintable() for line in shown), words
        assert max(map(len, shown)) <= 2000, words
        assert err.count("\n") <= 1 or right == 0, words


def test_ctrl_c_before_training_is_just_that(cli, tiny_encoder, reviews, tmp_path, monkeypatch):
    def pressed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("minift.cli.accuracy.class_accuracy", pressed)
    code, _, err = cli("classify", "--model", tiny_encoder, "--data", reviews, "--labels",
                       "bad,good", "--out", tmp_path / "r", "--quiet")  # fmt: skip
    assert (code, err) == (130, "minift: interrupted\n")
    assert not (tmp_path / "r").exists()


def test_ctrl_c_in_training_ends_without_another_evaluation(
    cli, tiny_encoder, reviews, tmp_path, monkeypatch
):
    honest = step.accumulate_gradients

    def pressed(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return honest(*arguments)

    monkeypatch.setattr(step, "accumulate_gradients", pressed)
    code, text, _ = cli("classify", "--model", tiny_encoder, "--data", reviews, "--labels",
                        "bad,good", "--out", tmp_path / "r", "--steps", 9)  # fmt: skip
    assert code == 130
    assert "interrupted  after 1 of 9 steps; the adapter saved is that of step 1" in text
    assert "after        accuracy" not in text
