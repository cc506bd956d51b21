"""run.json: what other commands take from it, and what it may not be."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minift.cli.run_file import base_in, dtype_in, run_summary
from minift.errors import FormatError


def written(folder: Path, content: Any) -> Path:
    """A run folder with that run.json; -> its adapter's."""
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / "run.json").write_bytes(raw)
    return adapter


def test_what_a_run_says(tmp_path):
    facts = {"base": "nf4", "numerics": {"dtype": "bf16"}, "steps": 3, "final_loss": 0.5}
    adapter = written(tmp_path, facts)
    assert (base_in(adapter), dtype_in(adapter)) == ("nf4", "bf16")
    assert run_summary(tmp_path) == "3 steps · loss 0.5"


def test_what_it_leaves_out_is_not_there(tmp_path):
    adapter = written(tmp_path, {"steps": 0, "final_loss": None, "numerics": "fast"})
    assert (base_in(adapter), dtype_in(adapter)) == (None, None)
    assert run_summary(tmp_path) == "0 steps · loss None"
    (tmp_path / "run.json").unlink()
    assert (base_in(adapter), dtype_in(adapter), run_summary(tmp_path)) == (None, None, None)


def test_only_the_adapter_of_a_run_is_on_its_base(tmp_path):
    written(tmp_path, {"base": "int8"})
    assert base_in(tmp_path / "other") is None


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""

    def attempt(folder: Path, content: Any) -> None:
        adapter = written(folder, content)
        base_in(adapter)
        dtype_in(adapter)
        run_summary(folder)

    def special(folder: Path, make: Callable[[Path], object]) -> None:
        (folder / "adapter").mkdir()
        make(folder / "run.json")
        base_in(folder / "adapter")

    sound = {"base": "dense", "steps": 1, "final_loss": 1.0}
    evil = "\x1b[2J\n\u202e" + "x" * 10_000
    cases: dict[str, tuple[Any, str]] = {
        "empty": (b"", "bad-json"), "no JSON": (b"{", "bad-json"), "a list": (b"[]", "bad-type"),
        "a number": (b"3", "bad-type"), "UTF-16": ("{}".encode("utf-16"), "bad-utf8"),
        "zeros": (bytes(1000), "bad-json"), "NaN": (b'{"final_loss": NaN}', "bad-json"),
        "a megabyte": (b" " * (2 << 20), "too-large"),
        "1e999": (b'{"steps": 1e999}', "out-of-range"),
        "deep": (b'{"a":' + b"[" * 100_000, "limit"), "twice": (b'{"a": 1, "a": 2}', "dup-key"),
        "deep, a surrogate": (b'{"a": "\\ud800", "b":' + b"[" * 900 + b"]" * 900 + b"}", "limit"),
        "digits": (b'{"steps": ' + b"9" * 100_000 + b"}", "limit"),
        "a long template": ({"data": {"template": "a" * (1 << 20)}}, "too-large"),
    }  # fmt: skip
    for value in (evil, "NF4", "", 0, 4, True, 1.5, [], ["nf4"], {}, {"a": [evil]}):
        cases[f"base {value!r:.20}"] = (sound | {"base": value}, "out-of-range")
    for value in (evil, "BF16", "", 0, True, [], ["bf16"], {}):
        cases[f"dtype {value!r:.20}"] = (sound | {"numerics": {"dtype": value}}, "out-of-range")
    found = {
        name: (partial(attempt, content=content), code) for name, (content, code) in cases.items()
    }
    makers = {
        "a folder": lambda path: path.mkdir(),
        "a pipe": os.mkfifo,
        "a device": lambda path: path.symlink_to("/dev/zero"),
    }
    return found | {name: (partial(special, make=m), "bad-path") for name, m in makers.items()}


def test_the_error_names_file_and_field(tmp_path):
    adapter = written(tmp_path, {"base": {"a": 1}})
    with pytest.raises(FormatError, match=r"run\.json: base: found \{'a': 1\}, allowed dense, int"):
        base_in(adapter)


def test_what_is_only_shown_is_one_line(tmp_path):
    written(tmp_path, {"steps": "\x1b[2J" * 100, "final_loss": {"a": ["\n" * 10_000]}})
    shown = run_summary(tmp_path)
    assert shown.isprintable()
    assert len(shown) < 200


@pytest.mark.parametrize(("facts", "text"), [
    ({"ended": "finished", "kept_step": 9}, "9 steps · loss 0.5"),
    ({"ended": "finished", "kept_step": 4}, "9 steps · loss 0.5 · adapter of step 4"),
    ({"ended": "interrupted", "kept_step": 9},
     "interrupted · 20 steps planned · 9 steps · loss 0.5 · adapter of step 9"),
    ({"ended": "failed: DataError: \x1b", "kept_step": None},
     "failed: DataError: \\x1b · 20 steps planned · 9 steps · loss 0.5"),
])  # fmt: skip
def test_how_a_run_ended_and_of_which_step_its_adapter_is(tmp_path, facts, text):
    common = {"steps": 9, "planned_steps": 20, "final_loss": 0.5}
    (tmp_path / "run.json").write_text(json.dumps(common | facts))
    assert run_summary(tmp_path) == text
