"""`minift verify`, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

from minift.cli.main import main

GOLDEN = Path(__file__).parents[1] / "golden"


def test_verify_says_what_it_found(capsys, tmp_path):
    out = tmp_path / "trace.safetensors"
    assert main(["verify", str(GOLDEN / "families/bert_labels"), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "family       bert" in shown
    assert "labels bad, fair, good" in shown
    assert "finite " in shown
    assert main(["verify", str(GOLDEN / "families/bert_labels"), "--against", str(out)]) == 0
    assert "equal        5 layers, largest difference 0.0e+00" in capsys.readouterr().out


def test_a_difference_is_an_error(capsys):
    words = ["verify", str(GOLDEN / "families/gemma"), "--json"]
    assert main([*words, "--against", str(GOLDEN / "families/gemma2")]) == 2
    result = capsys.readouterr()
    assert json.loads(result.out)["first_difference"][0] == "block 0"
    assert "is not what it should be: see block 0" in result.err


def test_a_trace_is_replaced_only_if_told_and_only_one_of_ours(capsys, tmp_path):
    out, mine = tmp_path / "trace.safetensors", tmp_path / "notes.csv"
    mine.write_text("mine")
    words = ["verify", str(GOLDEN / "families/bert"), "--out"]
    assert main([*words, str(out)]) == 0
    assert main([*words, str(out)]) == 2
    assert "exists; choose another, or --overwrite" in capsys.readouterr().err
    assert main([*words, str(out), "--overwrite"]) == 0
    assert main([*words, str(mine), "--overwrite"]) == 2
    assert "exists, and minift did not write it" in capsys.readouterr().err
    assert mine.read_text() == "mine"
