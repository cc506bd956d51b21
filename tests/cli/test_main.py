"""Every wrong input is one line on stderr and exit code 2; the other codes; help that fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import pytest

from minift import __version__
from minift.cli import main as module
from minift.cli.main import main
from minift.errors import notice
from minift.runtime import cores
from minift.train.keeper import Diverged


def refused(result, *parts):
    code, _, err = result
    assert code == 2
    assert err.startswith("minift: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    assert max(map(len, err.splitlines())) < 400


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["quikstart"], ['unknown command "quikstart"', "nearest: quickstart"]),
        (["sft", "--epocs", "2"], ["unknown option --epocs; nearest: --epochs"]),
        (["sft", "--model"], ["--model needs a value"]),
        (["sft", "--model", "--data", "x"], ["--model needs a value"]),
        (["sft"], ["--model (or --adapter), --data and --out are missing; for example: "]),
        (["sft", "--data", "x", "--out", "y"], ["--model (or --adapter) is missing"]),
        (["sft", "--lr", "fast"], ['--lr: found "fast", allowed a number']),
        (["sft", "--lr", "nan"], ["--lr", "finite"]),
        (["sft", "--steps", "1.5"], ["--steps", "a whole number"]),
        (["sft", "--debug=yes"], ["--debug takes no value"]),
        (["sft", "word"], ['unexpected word "word"']),
        (["info"], ["PATH is missing; for example: minift info smollm2-135m-instruct"]),
        (["generate", "The", "movie"], ['unexpected word "movie"; a text of several words stands']),
        (["--model", "x"], ["--model stands before a command"]),
        (["train"], ['unknown command "train"; here it is sft']),
        (["sft", "--learning_rate", "3"], ["unknown option --learning_rate; here it is --lr"]),
        (["sft", "-o", "x"], ["unknown option -o; here it is --out"]),
        (["eval", "--epochs", "3"], ["--epochs; it is an option of sft and classify"]),
        (["generate", "x", "--model", "y", "--stop", ""], ["--stop: found an empty text"]),
        (["chat", "--model", "y", "--chat-template", "lama3"], ["nearest: llama3"]),
        (["generate", "x", "--model", "y", "--top-p", "0.9"],
         ["--top-p: has no effect at temperature 0", "add --temperature 0.7"]),
        (["classify", "--labels", "bad", "good"], ['unexpected word "good" after --labels']),
        (["export", "a"], ["--out is missing; for example: minift export"]),
        (["merge", "--out", "x"], ["ADAPTER is missing"]),
        *((["sft", "--model", "y", "--data", "x", "--out", "z", *words.split()], [text])
          for words, text in (
              ("--steps 3 --epochs 2", "--steps and --epochs are given, allowed one of the two"),
              ("--held-out x --held-out-share 0.1", "--held-out and --held-out-share are given"),
              ("--rank 8 --method ia3", "--rank belongs to the method lora"),
              ("--rank 8 --adapter a", "--rank does not go with --adapter"),
              ("--method lorra", "nearest: lora"),
              ("--threads 0", "--threads: found 0, allowed a whole number from 1"),
              ("--epochs 0", "--epochs: found 0.0, allowed a number above 0"),
              ("--lora-init zero", "--lora-init: found zero, allowed uniform"),
              ("--lr 1 --lr 2", "--lr is given twice"),
              ("--pack maybe", '--pack: found "maybe", allowed auto, on, off'),
              ("--warmup 5", "--warmup: found 5.0, allowed from 0 to 1"),
              ("--seed 1.5", '--seed: found "1.5", allowed a whole number'),
              ("--ranks down", '--ranks: found "down", allowed name=value'))),
        (["eval", "--threads", "0"], ["--threads: found 0, allowed 1 or more"]),
        (["eval", "--max-length", "0"], ["--max-length: found 0, allowed 2 or more"]),
        (["generate", "x", "--max-new-tokens", "0"], ["--max-new-tokens", "allowed 1 or more"]),
        (["generate", "x", "--model", "y", "--top-p", "0"], ["--top-p: found 0.0"]),
        (["generate", "x"], ["--model (or --adapter) is missing; for example: minift generate"]),
        (["quickstart", "--limit", "0"], ["--limit: found 0"]),
        (["quickstart", "--source", "amazon"], ["amazon", "rotten_tomatoes"]),
        (["download", "smollm2-135m"], ["smollm2-135m-instruct"]),
        (["info", "smolm2-135m-instruct"], ["smolm2-135m", "nearest: smollm2-135m-instruct"]),
        (["merge", "no-run", "--out", "x"], ['no adapter folder "no-run" here']),
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_words_are_refused(cli, words, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(cli(*words), *parts)
    assert not list(tmp_path.iterdir())


def put(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


GOOD = '{"prompt": "a", "completion": "b"}\n'


@pytest.mark.parametrize(
    ("name", "text", "options", "parts"),
    [
        ("rows.jsonl", GOOD, ["--steps", "0"], ["steps: found 0"]),
        ("rows.jsonl", GOOD, ["--rank", "0"], ["rank: found 0"]),
        ("rows.jsonl", GOOD, ["--targets", "atention"], ["atention", "nearest: attention"]),
        ("rows.jsonl", GOOD, ["--dtype", "int3"], ["dtype: found int3"]),
        ("rows.jsonl", GOOD, ["--held-out", "none.jsonl"], ["none.jsonl"]),
        ("rows.jsonl", GOOD, ["--held-out-share", "-1"], ["--held-out-share"]),
        ("rows.jsonl", "", [], ["rows.jsonl", "an empty file"]),
        ("rows.jsonl", GOOD + '{"prompt": "a", "completion": null}\n', [],
         ["rows.jsonl line 2", 'field "completion"', "null"]),
        ("rows.jsonl", GOOD + '{"prompt": "a"\n', [], ["rows.jsonl line 2"]),
        ("rows.xlsx", "x", [], ["rows.xlsx", "unknown file type"]),
        ("rows.csv", "text,label\nfine,7\n",
         ["--template", "{text}:", "--target", "label", "--labels", "bad,good"],
         ["rows.csv line 2", 'field "label"', "7"]),
        ("rows.csv", "text,label\nfine,1\n", ["--template", "{txt}:", "--target", "label"],
         ["txt", "text"]),
    ],
)  # fmt: skip
def test_wrong_data_and_settings_leave_nothing(
    cli, tiny_model, tmp_path, name, text, options, parts
):
    path = put(tmp_path / name, text)
    out = tmp_path / "out"
    refused(cli("sft", "--model", tiny_model, "--data", path, "--out", out, *options), *parts)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_missing_file_and_a_missing_model_are_refused(cli, tiny_model, data, tmp_path):
    out = tmp_path / "out"
    refused(cli("sft", "--model", tiny_model, "--data", "no.jsonl", "--out", out), "no.jsonl")
    refused(cli("sft", "--model", "smolm2-135m-instruct", "--data", data, "--out", out),
            "nearest: smollm2-135m-instruct")  # fmt: skip
    refused(cli("info", tmp_path), "weights: found rows.jsonl, allowed model.safetensors")
    assert not out.exists()


def test_debug_shows_the_traceback(cli):
    code, _, err = cli("info", "nowhere", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("minift: ")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Diverged("step 3: too far"), 3, "minift: step 3: too far"),
        (KeyboardInterrupt(), 130, "minift: interrupted"),
    ],
)
def test_the_other_exit_codes(monkeypatch, capsys, error, code, line):
    def fails(words):
        raise error

    monkeypatch.setattr(module, "run", fails)
    assert main(["sft"]) == code
    assert capsys.readouterr().err == line + "\n"
    assert main(["sft", "--debug"]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_not_hidden(monkeypatch):
    def fails(words):
        raise RuntimeError("a bug")

    monkeypatch.setattr(module, "run", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["sft"])


def test_a_run_is_no_model(cli, run_folder):
    refused(cli("chat", "--model", run_folder), "is an adapter and no model; --adapter takes it")


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (MemoryError(), "out of memory; less is needed with a smaller --batch-size", 2),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory", 2),
        (PermissionError(13, "Permission denied", "x\ny"), "x\\ny: Permission denied", 2),
        (IsADirectoryError(21, "Is a directory", "d"), "d: Is a directory", 2),
        (KeyboardInterrupt(), "interrupted", 130),
        (RuntimeError("a bug"), "", 1),
        (KeyError("a bug"), "", 1),
    ],
)
def test_each_failure_has_a_line_and_a_code_or_is_a_bug(error, line, code):
    found = module.line_and_code(error)
    assert (found[0].startswith(line), found[1]) == (True, code)
    assert bool(found[0]) == bool(line)


LATIN = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}


def shell(*words, stdin=b"", **variables):
    """A command as a process of its own: its code, stdout and stderr, as bytes."""
    done = subprocess.run(
        [sys.executable, "-m", "minift", *map(str, words)],
        input=stdin, capture_output=True, env=os.environ | variables, check=False, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_nothing_is_raised_where_only_ascii_can_be_shown(tiny_model):
    words = ["chat", "--model", tiny_model, "--chat-template", "chatml", "--max-new-tokens", "3"]
    code, out, err = shell(*words, stdin="caf\u00e9\n".encode(), **LATIN)
    assert (code, err) == (0, b"")
    assert out.isascii()
    code, out, err = shell("explain", "lora", PYTHONIOENCODING="ascii")
    assert (code, err) == (0, b"")
    assert b" - B (out, R) zero" in out  # the dot has a twin, the raised T is escaped
    assert b"W\\u1d40" in out
    code, out, err = shell("info", "日本", PYTHONIOENCODING="cp1252")
    assert (code, out) == (2, b"")
    assert b'"\\u65e5\\u672c" here' in err


def test_bytes_that_are_no_text_are_refused_in_one_line(tiny_model):
    words = ["chat", "--model", tiny_model, "--chat-template", "chatml", "--max-new-tokens", "3"]
    code, out, err = shell(*words, stdin=b"caf\xe9\n", PYTHONIOENCODING="utf-8")
    assert (code, out) == (2, b"")
    assert err == b"minift: standard input: found bytes that are not utf-8, allowed text\n"


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m minift explain | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


def test_version(cli):
    assert cli("--version") == (0, f"minift {__version__}\n", "")


def test_json_is_one_object(cli, tiny_model, run_folder):
    for words in (
        ["download", "--list"], ["info", tiny_model], ["info", run_folder], ["explain"],
        ["explain", "lora"], ["verify", tiny_model], ["eval", "--adapter", run_folder, "--data",
        run_folder.parent / "d.jsonl"],
        ["generate", "1:", "--adapter", run_folder, "--max-new-tokens", 3],
    ):  # fmt: skip
        code, out, err = cli(*words, "--json")
        assert (code, err) == (0, "")
        assert isinstance(json.loads(out), dict)


def test_settings_that_slow_this_machine_down_are_named_and_taken(cli, tiny_model, data):
    words = ["eval", "--model", tiny_model, "--data", data, "--threads"]
    assert cli(*words, "1")[2] == ""
    code, _, err = cli(*words, "64")
    assert code == 0
    assert err.startswith(f"minift: threads: found 64 on {cores()} cores")
    assert len(err.splitlines()) == 1


def test_a_notice_is_printed_once_on_stderr(monkeypatch, capsys):
    def speak(words):
        with module.notices_shown():
            for _ in range(2):
                notice("m/config.json", "vision tensors ignored")
            warnings.warn("another kind", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(module, "run", speak)
    with pytest.warns(UserWarning, match="another kind"):
        assert main([]) == 0
    assert capsys.readouterr().err == "minift: m/config.json: vision tensors ignored\n"
