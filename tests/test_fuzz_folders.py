"""A few hundred mutated adapters, run folders, data files and configurations of each kind."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from minift.errors import ConfigError, DataError, FormatError

PATH = list(sys.path)
sys.path.insert(0, str(Path(__file__).parent))
import fuzz_folders  # noqa: E402

sys.path[:] = PATH  # hostile.py puts its own checkout first; the tests may be of an installed one


@pytest.mark.parametrize("kind", fuzz_folders.KINDS)
def test_only_the_projects_own_errors_leave_a_reader(kind):
    make, read = fuzz_folders.KINDS[kind]
    draw, refused, count = random.Random(0), 0, 300
    for number in range(count):
        data = make(draw)
        try:
            read(data)
        except (FormatError, ConfigError, DataError):
            refused += 1
        except BaseException as error:
            raise AssertionError(f"file {number}: {data!r:.2000}") from error
    assert count // 10 < refused < count
