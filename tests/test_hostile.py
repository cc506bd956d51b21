"""Every hostile file of the tests is refused as it should be; tests/hostile.py measures too."""

from __future__ import annotations

import gc
import importlib.util
import sys
import time
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("hostile", Path(__file__).with_name("hostile.py"))
hostile = importlib.util.module_from_spec(SPEC)
PATH = list(sys.path)
SPEC.loader.exec_module(hostile)
sys.path[:] = PATH  # the program puts its own checkout first; the tests may be of an installed one


@pytest.fixture(autouse=True)
def _only_its_own_garbage():
    """What other tests left is not looked through for garbage while a file is timed."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("form", hostile.FORMATS)
def test_refused_by_name_and_in_one_line(form, tmp_path):
    wrong = []
    for number, (name, (attempt, expected)) in enumerate(hostile.cases_of(form).items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        begin = time.process_time()
        code, text = hostile.refusal(attempt, folder)
        seconds = time.process_time() - begin
        if code != expected or seconds > hostile.SECONDS:
            wrong.append(
                f"{name}: {code or 'not refused'}, not {expected}, {seconds:.2f} s: {text}"
            )
    assert not wrong, "\n".join(wrong)


def test_there_are_enough_of_them():
    counts = {form: len(hostile.cases_of(form)) for form in hostile.FORMATS}
    assert min(counts.values()) >= 40, counts
    assert sum(counts.values()) >= 1500, counts
