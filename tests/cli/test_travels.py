"""What training decided goes with the adapter, the merged folder and the GGUF file, and is used."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest

import minift
from minift.checkpoints.hub.assets import peft_name
from minift.checkpoints.open import load, load_model
from minift.cli.main import main
from minift.errors import FormatError
from minift.tokenizers import chat
from minift.tokenizers.text_format import end_names

SYSTEM = "Speak as a sailor."
TALKS = [
    {"messages": [
        {"role": "system", "content": SYSTEM}, {"role": "user", "content": f"question {i}"},
        {"role": "assistant", "content": f"answer {i}"},
    ]}
    for i in range(6)
]  # fmt: skip


@pytest.fixture(scope="module")
def plain_run(tiny_model, tmp_path_factory):
    """Conversations in another template than the base's."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALKS))
    words = f"sft --model {tiny_model} --data {folder}/d.jsonl --out {folder}/run --steps 20"
    options = (
        "--batch-size 4 --lr 0.02 --held-out-share 0 --chat-template plain --quiet --max-length 60"
    )
    assert main([*words.split(), *options.split()]) == 0
    return folder


def template_of(folder):
    """The chat template of a saved folder, as other programs find it."""
    own = folder / "chat_template.jinja"
    if own.exists():
        return own.read_text()
    return json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]


def test_the_run_and_its_adapter_say_what_was_decided(plain_run):
    texts = json.loads((plain_run / "run/run.json").read_text())["data"]["texts"]
    assert "User: " in texts["chat_template"]
    assert texts["system"] == SYSTEM
    assert texts["max_length"] == 60
    assert "<|im_end|>" in texts["ends"]
    assert json.loads((plain_run / "run/adapter/minift.json").read_text())["texts"] == texts


def test_evaluation_is_in_the_template_of_training(cli, plain_run):
    words = ["eval", "--adapter", plain_run / "run", "--data", plain_run / "d.jsonl", "--json"]
    code, text, err = cli(*words)
    assert code == 0
    code, named, _ = cli(*words, "--chat-template", "plain")
    assert json.loads(text)["loss"] == json.loads(named)["loss"]
    code, other, err = cli(*words, "--chat-template", "chatml")
    assert code == 0
    assert json.loads(other)["loss"] > json.loads(text)["loss"]
    assert "was trained with another chat template; --chat-template chatml is used" in err


def test_a_chat_begins_with_the_system_message_of_training(cli, plain_run, monkeypatch):
    def talk(*more):
        monkeypatch.setattr("sys.stdin", io.StringIO("question 1\n"))
        return cli("chat", "--adapter", plain_run / "run", "--max-new-tokens", 4, *more)

    code, with_it, err = talk()
    assert code == 0
    assert f"the system's message of training: {SYSTEM} (--system '' for none)" in err
    assert "system's message" not in talk("--system", "")[2]
    assert talk("--system", SYSTEM)[1] == with_it


@pytest.mark.parametrize("how", ["merge", "hf", "gguf"])
def test_merged_and_exported_it_goes_along(cli, plain_run, tmp_path, how):
    out = tmp_path / ("m.gguf" if how == "gguf" else "merged")
    words = ["merge"] if how == "merge" else ["export", "--to", how]
    code, _, err = cli(*words, plain_run / "run", "--out", out)
    assert (code, err) == (0, "")
    model, tokenizer = load(out)
    assert "User: " in tokenizer.template
    assert model.text_format.system == SYSTEM
    assert model.text_format.max_length == 60
    texts = json.loads((plain_run / "run/run.json").read_text())["data"]["texts"]
    assert end_names(tokenizer) == tuple(texts["ends"])
    if how != "gguf":
        assert "User: " in template_of(out)
    losses = [
        json.loads(cli("eval", *place, "--data", plain_run / "d.jsonl", "--json")[1])["loss"]
        for place in (["--model", out], ["--adapter", plain_run / "run"])
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_another_template_for_a_merged_model_is_said(cli, plain_run, tmp_path):
    words = ["merge", plain_run / "run", "--out", tmp_path / "m", "--chat-template", "chatml"]
    code, _, err = cli(*words)
    assert code == 0
    assert "--chat-template chatml is used" in err
    assert "<|im_start|>" in template_of(tmp_path / "m")


@pytest.mark.parametrize("file", ["merged", "m.gguf"])
def test_from_python_a_merged_model_is_saved_with_the_template_of_training(
    plain_run, tiny_model, tmp_path, file
):
    model, tokenizer = load(tiny_model)
    own = tokenizer.template
    merged = minift.merge(minift.load_adapter(model, plain_run / "run"))
    with pytest.warns(minift.Notice, match="is written with the chat template of training"):
        minift.save(merged, tokenizer, tmp_path / file)
    assert tokenizer.template == own
    again, written = load(tmp_path / file)
    assert "User: " in written.template
    assert again.text_format == merged.text_format
    # A template that was chosen by name goes out.
    tokenizer.chat_template = "chatml"
    minift.save(merged, tokenizer, tmp_path / f"2{file}")
    assert "<|im_start|>" in load(tmp_path / f"2{file}")[1].template
    tokenizer.chat_template = None
    minift.load_adapter(load(tiny_model)[0], plain_run / "run", tokenizer=tokenizer)
    minift.save(merged, tokenizer, tmp_path / f"3{file}")  # without a notice, which is an error


def test_another_template_for_a_saved_model_is_said(cli, plain_run, tmp_path):
    assert cli("merge", plain_run / "run", "--out", tmp_path / "m")[0] == 0
    words = ["eval", "--model", tmp_path / "m", "--data", plain_run / "d.jsonl"]
    assert cli(*words)[2] == ""
    code, _, err = cli(*words, "--chat-template", "chatml")
    assert code == 0
    assert err == (f"minift: {tmp_path / 'm'}: was trained with another chat template; "
                   "--chat-template chatml is used\n")  # fmt: skip


def test_going_on_takes_over_what_was_decided(cli, plain_run, tiny_model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(plain_run / "run", run)
    facts = json.loads((run / "run.json").read_text())
    facts["numerics"]["dtype"] = "float64"  # which no machine chooses by itself
    (run / "run.json").write_text(json.dumps(facts))
    shutil.copytree(tiny_model, tmp_path / "other")
    words = ["sft", "--adapter", run, "--data", plain_run / "d.jsonl", "--steps", 1, "--quiet"]
    code, _, err = cli(*words, "--out", tmp_path / "on")
    assert code == 0
    assert "computes in float64, as in its training" in err
    said = json.loads((tmp_path / "on/run.json").read_text())
    assert said["model"] == tiny_model
    assert said["numerics"]["dtype"] == "float64"
    assert said["data"]["max_length"] == 60
    assert said["data"]["texts"] == facts["data"]["texts"]
    code, _, err = cli(*words, "--model", tmp_path / "other", "--out", tmp_path / "on2")
    assert code == 0
    assert f"was trained on {tiny_model}; --model names {tmp_path / 'other'} instead" in err


def test_every_token_that_ends_an_answer_is_saved(cli, tiny_model, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    _, tokenizer = load(base)
    more = next(i for i in sorted(tokenizer.special.values()) if i not in chat.ends(tokenizer))
    ids = [tokenizer.eos, more]
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    model, tokenizer = load(base)
    expected = chat.ends(tokenizer)
    assert set(ids) <= expected
    assert cli("export", base, "--to", "hf", "--out", tmp_path / "hf")[0] == 0
    for name in ("generation_config.json", "config.json"):
        saved = json.loads((tmp_path / "hf" / name).read_text())["eos_token_id"]
        assert saved[0] == tokenizer.eos
        assert set(saved) == expected
    assert chat.ends(load(tmp_path / "hf")[1]) == expected
    minift.save(model, tokenizer, tmp_path / "m.gguf")
    again = load(tmp_path / "m.gguf")[1]
    assert chat.ends(again) - {again.eos}  # the format has a key for one more
    assert chat.ends(again) <= expected


def test_a_prompt_is_made_by_the_template_of_training(cli, tiny_model, tmp_path):
    (tmp_path / "d.csv").write_text("text,label\n" + "".join(f"film {i},good\n" for i in range(6)))
    run = tmp_path / "run"
    words = ["sft", "--model", tiny_model, "--data", tmp_path / "d.csv", "--out", run, "--steps", 2]
    template = "Review: {text}\\nSentiment:"
    assert cli(*words, "--template", template, "--target", "label", "--quiet")[0] == 0
    one = ["generate", "--adapter", run, "--max-new-tokens", 3]
    code, made, err = cli(*one, "film 1")
    assert code == 0
    assert "the prompt is made by the template of training, 'Review: {text}\\nSentiment:'" in err
    code, typed, err = cli(*one, "Review: film 1\\nSentiment:")
    assert (code, typed, "template of training" in err) == (0, made, False)
    assert "template of training" not in cli(*one, "film 1", "--template", "{text}")[2]
    code, text, err = cli("eval", "--adapter", run, "--data", tmp_path / "d.csv", "--json")
    assert code == 0
    assert "is read by the template of training" in err
    assert json.loads(text)["rows"] == 6


def test_what_a_run_computed_in_is_used_and_another_is_said(cli, plain_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(plain_run / "run", run)
    facts = json.loads((run / "run.json").read_text())
    assert facts["numerics"]["dtype"] in ("float32", "bf16")
    words = ["eval", "--adapter", run, "--data", plain_run / "d.jsonl", "--json"]
    for trained, asked in (("float32", "bf16"), ("bf16", "float32")):
        facts["numerics"]["dtype"] = trained
        (run / "run.json").write_text(json.dumps(facts))
        code, text, _ = cli(*words)
        assert code == 0
        assert (
            f"was trained in {trained}; --dtype {asked} is used" in cli(*words, "--dtype", asked)[2]
        )
        assert json.loads(text) == json.loads(cli(*words, "--dtype", trained)[1])
    facts["numerics"]["dtype"] = "int3"
    (run / "run.json").write_text(json.dumps(facts))
    assert cli(*words)[0] == 2


def test_info_says_what_was_decided(cli, plain_run):
    text = cli("info", plain_run / "run")[1]
    assert f"system: {SYSTEM}" in text
    assert "longest: 60 tokens" in text


def test_peft_gets_a_base_that_it_finds(plain_run, tiny_model):
    config = json.loads((plain_run / "run/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_model
    assert peft_name("smollm2-135m-instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert peft_name("minilm-l6-v2") == "sentence-transformers/all-MiniLM-L6-v2"
    assert peft_name("org/name") == "org/name"


def test_an_adapter_for_another_family_is_one_line(plain_run):
    bert = load_model(Path(__file__).parents[1] / "golden/families/bert")
    with pytest.raises(
        FormatError, match="found an adapter for llama, allowed one for bert"
    ) as told:
        minift.load_adapter(bert, plain_run / "run")
    assert "\n" not in str(told.value)


def test_a_run_that_diverged_keeps_an_adapter_that_is_used_and_can_be_replaced(
    cli, tiny_model, tmp_path
):
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TALKS))
    words = ["sft", "--model", tiny_model, "--data", tmp_path / "d.jsonl", "--out", tmp_path / "r",
             "--batch-size", 2, "--held-out-share", 0.3, "--eval-every", 1,
             "--chat-template", "plain"]  # fmt: skip
    code, _, err = cli(*words, "--steps", 30, "--lr", 1e30, "--clip", 0, "--warmup", 0)
    assert code == 3, err
    facts = json.loads((tmp_path / "r/run.json").read_text(), parse_constant=pytest.fail)
    assert facts["ended"] == "diverged"
    if facts["kept_step"] is not None:
        code, text, _ = cli("info", tmp_path / "r")
        assert code == 0
        assert "did not finish" in text
    assert cli(*words, "--steps", 1, "--overwrite")[0] == 0


def test_a_merged_classifier_knows_its_columns(cli, tiny_model, tmp_path):
    rows = "review,verdict\n" + "".join(f"film {i},{'ab'[i % 2]}\n" for i in range(8))
    (tmp_path / "d.csv").write_text(rows)
    words = ["classify", "--model", tiny_model, "--data", tmp_path / "d.csv", "--labels", "a,b"]
    texts = ["--template", "{review}", "--target", "verdict", "--steps", 2]
    assert cli(*words, *texts, "--out", tmp_path / "r")[0] == 0
    assert cli("merge", tmp_path / "r", "--out", tmp_path / "m")[0] == 0
    code, text, _ = cli("eval", "--model", tmp_path / "m", "--data", tmp_path / "d.csv", "--json")
    assert code == 0
    assert json.loads(text)["rows"] == 8


def test_a_classifier_is_no_start_for_a_language_model(cli, tiny_model, data, tmp_path):
    (tmp_path / "d.csv").write_text("text,label\n" + "x,a\ny,b\n" * 4)
    words = ["--model", tiny_model, "--data", tmp_path / "d.csv", "--labels", "a,b", "--steps", 1]
    assert cli("classify", *words, "--out", tmp_path / "r")[0] == 0
    code, _, err = cli("sft", "--model", tiny_model, "--data", data, "--adapter", tmp_path / "r",
                       "--out", tmp_path / "s")  # fmt: skip
    assert code == 2
    assert "is a classifier: minift classify goes on from it" in err


def test_a_flag_without_effect_is_refused(cli, plain_run, tiny_encoder, tmp_path):
    (tmp_path / "d.csv").write_text("text,label\na,x\nb,y\nc,x\nd,y\n")
    words = ["--data", tmp_path / "d.csv", "--out", tmp_path / "run", "--steps", 1, "--quiet"]
    assert cli("classify", "--model", tiny_encoder, "--labels", "x,y", *words)[0] == 0
    judged = ["eval", "--adapter", tmp_path / "run", "--data", tmp_path / "d.csv"]
    exported = ["export", plain_run / "run", "--to", "gguf-lora", "--out", tmp_path / "a.gguf"]
    for words, option in (
        ([*judged, "--documents", "file"], "--documents"),
        ([*judged, "--chat-template", "chatml"], "--chat-template"),
        ([*exported, "--chat-template", "chatml"], "--chat-template"),
    ):
        code, _, err = cli(*words)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"minift: {option}: has no effect")


def test_another_column_is_read_with_the_template_of_training(cli, tiny_model, tmp_path):
    (tmp_path / "d.csv").write_text("text,label,other\n" + "a,x,y\nb,x,y\nc,x,y\nd,x,y\n")
    words = ["--data", tmp_path / "d.csv", "--template", "Read {text}:", "--target", "label"]
    run = ["sft", "--model", tiny_model, *words, "--out", tmp_path / "run", "--steps", 1]
    assert cli(*run, "--quiet")[0] == 0
    judged = ["eval", "--adapter", tmp_path / "run", "--data", tmp_path / "d.csv"]
    code, text, err = cli(*judged, "--target", "other", "--json")
    assert code == 0
    assert "read by the template of training, 'Read {text}:'" in err
    whole = ["--template", "Read {text}:", "--target", "other", "--json"]
    assert json.loads(text) == json.loads(cli(*judged, *whole)[1])


def test_a_template_that_is_none_is_one_line(cli, plain_run):
    words = ["generate", "x", "--adapter", plain_run / "run", "--template", "Review: {text"]
    code, _, err = cli(*words)
    assert code == 2
    assert err.count("\n") == 1
    assert "template" in err
