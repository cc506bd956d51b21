"""The data sets that minift downloads, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from minift.data.named import labels_of_named
from minift.data.read import open_records
from minift.errors import ConfigError, Notice


def test_a_set_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIFT_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^aclsum is not downloaded: minift download aclsum$"):
        open_records("aclsum")
    with pytest.raises(ConfigError, match="allowed: aclsum, aclsum:val, aclsum:test"):
        open_records("aclsum:dev")
    assert labels_of_named("movie-reviews:test") == ("negative", "positive")
    assert labels_of_named("a.csv") == labels_of_named(None) == ()


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "rows", "kind"),
    [
        ("movie-reviews", 7490, "prompt"),
        ("movie-reviews:test", 1040, "prompt"),
        ("aclsum", 300, "prompt"),
        ("aclsum:val", 150, "prompt"),
        ("aclsum:test", 300, "prompt"),
        ("chatterbot", 2025, "messages"),
    ],
)
def test_what_it_fetches_it_reads(
    asset: Callable[[str], Path], name: str, rows: int, kind: str
) -> None:
    asset(name.partition(":")[0])
    with pytest.warns(Notice, match=f"{rows:,} "):
        opened = open_records(name)
    assert (len(opened), opened.kind) == (rows, kind)
