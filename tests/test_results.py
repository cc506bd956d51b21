"""The README's numbers are those of the result files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_readme_says_what_the_result_files_say() -> None:
    path = ROOT / "benchmarks" / "table.py"
    spec = importlib.util.spec_from_file_location("table", path)
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    readme = (ROOT / "README.md").read_text()
    assert table.written(readme) == readme, "run: python benchmarks/table.py"
