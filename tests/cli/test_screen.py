"""What is printed where, and how numbers read."""

from __future__ import annotations

import io
import sys

import pytest

from minift.cli.screen import Screen, clock, duration, megabytes


def test_quiet_leaves_the_result(capsys):
    screen = Screen(quiet=True)
    screen.say("progress")
    screen.result("result", {"a": 1})
    assert capsys.readouterr().out == "result\n"


def test_json_replaces_the_text(capsys):
    Screen(as_json=True).result("result", {"a": [1, 0.5]})
    assert capsys.readouterr().out == '{"a": [1, 0.5]}\n'


def test_without_a_terminal_there_is_no_colour_and_a_plain_bar(capsys):
    screen = Screen()
    assert screen.learned("x") == "▐x▌"
    assert screen.paint("x", "1") == "x"
    bar = screen.bar(2, "steps")
    bar.advance(1)
    bar.advance(1, "loss 1")
    bar.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "             2/2 steps  left 00:00  loss 1\n"


def test_a_bar_of_bytes_counts_in_megabytes(capsys):
    bar = Screen().bar(93_000_000, "B")
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
    assert Screen().paint("x", "1") == expected


def test_numbers_read_well():
    assert [clock(s) for s in (0, 59.6, 3601)] == ["00:00", "01:00", "60:01"]
    assert [megabytes(n) for n in (4e5, 9.26e6, 9.3e7, 2.5e9)] == [
        "0.4 MB", "9.3 MB", "93 MB", "2.5 GB",
    ]  # fmt: skip
    assert [duration(s) for s in (12.4, 89, 123)] == ["12 s", "89 s", "2.0 min"]


@pytest.mark.parametrize(("columns", "line"), [
    ("100", "             2/2 steps  left 00:00  loss 1.234  1,020 tok/s  lr 1.0e-03"),
    ("60", "2/2 steps  left 00:00  loss 1.234  1,020 tok/s  lr 1.0e-03"),
    ("40", "2/2 steps  left 00:00  loss 1.234  1,020"),
])  # fmt: skip
def test_plain_progress_fits_the_columns(monkeypatch, capsys, columns, line):
    monkeypatch.setenv("COLUMNS", columns)
    Screen().bar(2, "steps").advance(2, "loss 1.234  1,020 tok/s  lr 1.0e-03")
    assert capsys.readouterr().err == line + "\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_a_bar_fits_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stderr", Terminal())
    bar = Screen().bar(120, "steps")
    bar.begin -= 60
    for step in range(120):
        bar.advance(1, "  loss 1.234  1,020 tok/s  lr 1.0e-03")
        if step == 60:
            bar.tell("held out 1.500 at step 2 (best)")
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
    bar = Screen().bar(2, "steps")
    bar.advance(2)
    bar.tell("held out")
    bar.close()
