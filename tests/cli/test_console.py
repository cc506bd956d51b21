"""What is printed where, and how numbers read."""

from __future__ import annotations

import io
import math
import shlex
import sys

import pytest

from minift.cli.console import (
    Console,
    clock,
    columns,
    display_width,
    duration,
    megabytes,
    replace_unencodable_text,
    wrap_text,
)


def test_quiet_leaves_the_result(capsys):
    console = Console(quiet=True)
    console.say("progress")
    console.result("result", {"a": 1})
    assert capsys.readouterr().out == "result\n"


def test_json_replaces_the_text(capsys):
    Console(as_json=True).result("result", {"a": [1, 0.5]})
    assert capsys.readouterr().out == '{"a": [1, 0.5]}\n'


def test_without_a_terminal_there_is_no_colour_and_a_plain_bar(capsys):
    console = Console()
    assert console.mark_trained("x") == "▐x▌"
    assert console.paint("x", "1") == "x"
    bar = console.bar(2, "steps")
    bar.advance(1)
    bar.advance(1, "loss 1")
    bar.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "             2/2 steps  left 00:00  loss 1\n"


def test_a_bar_of_bytes_counts_in_megabytes(capsys):
    bar = Console().bar(93_000_000, "B")
    bar.told -= 60
    bar.advance(2_500_000)
    bar.close()
    assert capsys.readouterr().err.startswith("             2.5 MB of 93 MB  left ")


@pytest.mark.parametrize(("no_color", "expected"), [(None, "\x1b[1mx\x1b[0m"), ("", "x")])
def test_a_terminal_has_colour_unless_told(monkeypatch, no_color, expected):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    assert Console().paint("x", "1") == expected


def test_numbers_read_well():
    assert [clock(s) for s in (0, 59.6, 3601)] == ["00:00", "01:00", "60:01"]
    assert [megabytes(n) for n in (4e5, 9.26e6, 9.3e7, 2.5e9)] == [
        "0.4 MB", "9.3 MB", "93 MB", "2.5 GB",
    ]  # fmt: skip
    assert [duration(s) for s in (12.4, 89, 123)] == ["12 s", "89 s", "2.0 min"]


def test_json_has_no_number_that_is_none(capsys):
    Console(as_json=True).result("", {"a": [math.inf, {"b": math.nan}], "c": 1.5, "d": True})
    assert capsys.readouterr().out == '{"a": [null, {"b": null}], "c": 1.5, "d": true}\n'


def test_lines_are_broken_at_spaces_under_their_text():
    line = "saved        runs/a/  adapter/ (PEFT loads it)  metrics.jsonl  run.json"
    assert wrap_text(line, 60) == (
        "saved        runs/a/  adapter/ (PEFT loads it)\n             metrics.jsonl  run.json"
    )
    assert wrap_text(line, 100) == line


@pytest.mark.parametrize("width", [40, 60, 100])
def test_no_line_is_wider_than_asked(width):
    texts = [
        "train        LoRA r=8 on all linears · 2,442,240 trainable, 1.8 %, float32 on bfloat16 · "
        "fused kernels · about 76 s",
        "             " + "word " * 50 + "▐" + "answer " * 5 + "▌   ▐trained▌",
        "             " + "日本語の文章" * 30,
        "x" * 500,
        "next         minift merge runs/a --out merged --base nf4 --dtype bf16 --max-kl 0.1 "
        "--overwrite --quiet --json",
    ]
    for text in texts:
        shown = wrap_text(text, width)
        assert max(map(display_width, shown.split("\n"))) <= width
        joined = "".join(part.removesuffix("\\") for part in shown.split("\n"))
        assert "".join(joined.split()) == "".join(text.split())


def test_a_broken_command_can_still_be_typed():
    line = "next         minift eval --data your.csv --template 'Review: {text}' --target label"
    shown = wrap_text(line, 60)
    typed = shown.removeprefix("next").replace("\\\n", " ")
    assert "\\\n" in shown
    assert shlex.split(typed) == shlex.split(line.removeprefix("next"))


def test_a_path_is_never_broken():
    path = "runs/" + "long-name/" * 12
    assert any(path in line for line in wrap_text(f"saved        a {path} b c", 60).split("\n"))


def test_a_colour_ends_with_its_line_and_goes_on_in_the_next():
    shown = wrap_text("             one two \x1b[30;42mthree four five six seven\x1b[0m end", 40)
    for line in shown.split("\n"):
        assert line.count("\x1b[30;42m") == line.count("\x1b[0m")


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", b"[x] - caf\\xe9 \\u65e5 ..."),
        ("cp1252", b"[x] \xb7 caf\xe9 \\u65e5 \x85"),
        ("utf-8", "▐x▌ · café 日 …".encode()),
    ],
)
def test_a_stream_takes_every_character(monkeypatch, encoding, shown):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", stream)
    replace_unencodable_text()
    Console().say("▐x▌ · café 日 …")
    print("\udc80", flush=True)  # half a character, of a file's name
    assert stream.buffer.getvalue() == shown + b"\n\\udc80\n"


def test_the_width_is_the_terminals_between_40_and_100(monkeypatch):
    for typed, width in (("60", 60), ("20", 40), ("300", 100)):
        monkeypatch.setenv("COLUMNS", typed)
        assert columns() == width


@pytest.mark.parametrize(("columns", "line"), [
    ("100", "             2/2 steps  left 00:00  loss 1.234  1,020 tok/s  lr 1.0e-03"),
    ("60", "2/2 steps  left 00:00  loss 1.234  1,020 tok/s  lr 1.0e-03"),
    ("40", "2/2 steps  left 00:00  loss 1.234  1,020"),
])  # fmt: skip
def test_plain_progress_fits_the_columns(monkeypatch, capsys, columns, line):
    monkeypatch.setenv("COLUMNS", columns)
    Console().bar(2, "steps").advance(2, "loss 1.234  1,020 tok/s  lr 1.0e-03")
    assert capsys.readouterr().err == line + "\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_a_bar_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stderr", Terminal())
    bar = Console().bar(120, "steps")
    bar.begin -= 60
    for step in range(120):
        bar.advance(1, "  loss 1.234  1,020 tok/s  lr 1.0e-03")
        if step == 60:
            bar.print_above("held out 1.500 at step 2 (best)")
    bar.bar.refresh()
    bar.close()
    text = sys.stderr.getvalue()
    assert "held out 1.500 at step 2 (best)\n" in text
    assert "left 00:00  loss 1.234" in text or columns == 40
    assert max(len(part) for part in text.replace("\n", "\r").split("\r")) <= columns


class Gone(io.StringIO):
    def write(self, text):
        raise OSError(5, "Input/output error")


def test_a_terminal_that_is_gone_ends_no_work(monkeypatch):
    monkeypatch.setattr("sys.stderr", Gone())
    bar = Console().bar(2, "steps")
    bar.advance(2)
    bar.print_above("held out")
    bar.close()
