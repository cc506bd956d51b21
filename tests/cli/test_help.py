"""Help fits a screen, names every option, and is asked for in any place."""

from __future__ import annotations

import pytest

from minift.cli.commands import COMMANDS, Command
from minift.cli.help import command_help
from minift.cli.options import Flag
from minift.train.config import TrainConfig


@pytest.mark.parametrize("words", [("help", "sft"), ("-h", "sft"), ("sft", "--lr", "1", "-h")])
def test_help_is_asked_for_in_any_place(cli, words):
    assert cli(*words) == cli("sft", "--help")
    shown = cli(*words)[1]
    for option in (
        "--epochs",
        "--steps",
        "--lr",
        "--batch-size",
        "--held-out",
        "--method",
        "--rank",
    ):
        assert f"\n  {option} " in shown
    assert cli("--help-all", "sft") == cli("sft", "--help-all")


@pytest.mark.parametrize(
    "words", [[], ["--help"], *([command, "--help"] for command in COMMANDS)], ids=str
)
def test_help_fits_a_screen(cli, words):
    code, out, err = cli(*words, width=100)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert "minift" in lines[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_all_help_names_every_option_within_the_width(cli, command):
    for width in (100, 60):
        _, out, _ = cli(command, "--help-all", width=width)
        assert max(map(len, out.splitlines())) <= width
        assert "--debug" in out


def test_the_fields_of_a_method_stand_under_its_name(monkeypatch):
    monkeypatch.setattr("minift.cli.options.resolve", lambda spec: {"fast": (TrainConfig, None)})
    command = Command("does", "minift x", (Flag("out", str, None, "o"),), configs=("any:METHODS",))
    shown = command_help("x", command, everything=True)
    out, heading, lr = (shown.index(text) for text in ("--out", "\nfast:\n", "--lr"))
    assert out < heading < lr
