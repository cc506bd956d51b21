"""What is printed where, and how numbers read."""

from __future__ import annotations

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
