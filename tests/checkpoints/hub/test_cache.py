"""The Hugging Face cache: made-up ones, whole and tampered with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from minift.checkpoints.hub import cache as hub_cache
from minift.checkpoints.hub.cache import Name, cache_dir, cached, check_inside, link_root
from minift.errors import ConfigError, FormatError

OLD, NEW = "0123456789abcdef" * 2 + "01234567", "f" * 40


def made(cache: Path, name: str = "models--org--model") -> Path:
    """A model as the hub's own client leaves it: two snapshots, `main` and a tag."""
    folder = cache / name
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs" / "pr").mkdir(parents=True)
    for commit in (OLD, NEW):
        (folder / "snapshots" / commit).mkdir(parents=True)
        for file in ("config.json", "model.safetensors"):
            blob = folder / "blobs" / f"{commit[:8]}-{file}"
            blob.write_text(f"{file} {commit}")
            (folder / "snapshots" / commit / file).symlink_to(f"../../blobs/{blob.name}")
    (folder / "refs" / "main").write_text(NEW)
    (folder / "refs" / "v1.0").write_text(OLD)
    (folder / "refs" / "pr" / "1").write_text(OLD)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub").mkdir()
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, "/home/ann/.cache/huggingface/hub"),
        ({"HF_HUB_CACHE": "", "HF_HOME": "", "XDG_CACHE_HOME": ""},
         "/home/ann/.cache/huggingface/hub"),
        ({"HF_HUB_CACHE": "~/models"}, "/home/ann/models"),
        ({"HF_HOME": "~/hf"}, "/home/ann/hf/hub"),
    ],
)  # fmt: skip
def test_where_the_cache_is(
    values: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/ann")
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected)


def test_finds_a_model(cache: Path) -> None:
    snapshots = made(cache) / "snapshots"
    assert cached("org/model") == snapshots / NEW
    assert cached("org/model@main") == snapshots / NEW
    assert cached("org/model@v1.0") == snapshots / OLD
    assert cached("org/model@pr/1") == snapshots / OLD
    assert cached(f"org/model@{OLD}") == snapshots / OLD
    found = cached("org/model")
    assert found is not None
    assert (found / "config.json").read_text() == f"config.json {NEW}"


def test_finds_one_gguf_of_a_model(cache: Path) -> None:
    folder = made(cache) / "snapshots" / NEW
    (folder / "sub").mkdir()
    (folder / "sub" / "m.gguf").write_text("GGUF")
    assert cached("org/model/sub/m.gguf") == folder / "sub" / "m.gguf"
    assert cached("org/model/m.gguf") is None
    (folder / "sub" / "m.gguf").unlink()
    (folder / "sub" / "m.gguf").symlink_to(cache.parent / "secret")
    (cache.parent / "secret").write_text("secret")
    with pytest.raises(FormatError) as caught:
        cached("org/model/sub/m.gguf")
    assert caught.value.code == "bad-path"


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_half_a_model_is_none(cache: Path, gone: str) -> None:
    (made(cache) / "snapshots" / NEW / gone).unlink()
    assert cached("org/model") is None


def test_shards_are_all_there_or_the_model_is_not(cache: Path) -> None:
    folder = made(cache) / "snapshots" / NEW
    (folder / "model.safetensors").unlink()
    index = folder / "pytorch_model.bin.index.json"
    index.write_text('{"weight_map": {"a": "1.bin", "b": "2.bin"}}')
    (folder / "1.bin").touch()
    assert cached("org/model") is None
    (folder / "2.bin").touch()
    assert cached("org/model") == folder
    index.write_text('{"weight_map": {"a": "../1.bin"}}')
    assert cached("org/model") is None


def test_finds_copies_instead_of_links(cache: Path) -> None:
    """Where links cannot be made, the client copies."""
    folder = made(cache)
    link = folder / "snapshots" / NEW / "config.json"
    link.unlink()
    link.write_text("{}")
    assert cached("org/model") == folder / "snapshots" / NEW


def test_a_cache_on_another_disk(cache: Path, tmp_path: Path) -> None:
    elsewhere = made(tmp_path / "disk")
    (cache / "models--org--model").symlink_to(elsewhere)
    found = cached("org/model")
    assert found == cache / "models--org--model" / "snapshots" / NEW
    assert link_root(found) == elsewhere


@pytest.mark.parametrize(
    "name",
    ["org/other", "org/Model", "org/model@v2", f"org/model@{'0' * 40}", f"org/model@{OLD[:8]}"],
)  # fmt: skip
def test_what_is_not_there(name: str, cache: Path) -> None:
    made(cache)
    assert cached(name) is None


@pytest.mark.parametrize("gone", ["refs/main", "snapshots"])
def test_a_download_that_was_cut_short(gone: str, cache: Path) -> None:
    folder = made(cache)
    os.rename(folder / gone, folder / "gone")
    assert cached("org/model") is None


def test_no_cache_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "missing"))
    assert cached("org/model") is None


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "model", "/etc/passwd", "..", "../org/model", "org/../model", "org/..",
        "./model", "org/", "/model", "a/b/c", "org//model", "org--model", "models--org--model",
        "org/mo--del",
        "org\\model", "org/model\0", "org/model\n", "or g/model", "org/modèl", "-org/model",
        "org/.model", "org/model.", "~/model", "org/" + "m" * 97, "org/*", "$HOME", "C:/model",
    ],
)  # fmt: skip
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ConfigError, match="model") as caught:
        Name.parse(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "revision",
    [
        "", "/", "..", ".", "../main", "a/../b", "a/./b", "/etc/passwd", "main/", "a//b", "a\0",
        "ma in", "main\n", "mäin", "a\\b", "x" * 201, "main@main", "~root",
    ],
)  # fmt: skip
def test_what_is_no_revision(revision: str, cache: Path) -> None:
    made(cache)
    with pytest.raises(ConfigError, match="revision") as caught:
        cached(f"org/model@{revision}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"main", b"../../../../secret", NEW[:39].encode(), NEW.encode() + b"0", b"F" * 40,
     b"\xff" * 40, NEW.encode() + b"\n" + OLD.encode(), b"\0" * 40, NEW.encode() + b"/..",
     NEW.encode() + b" " * 4096],
)  # fmt: skip
def test_a_reference_that_is_no_commit_is_none(content: bytes, cache: Path) -> None:
    (made(cache) / "refs" / "main").write_bytes(content)
    assert cached("org/model") is None


def test_a_reference_with_a_line_end(cache: Path) -> None:
    folder = made(cache)
    (folder / "refs" / "main").write_text(OLD + "\n")
    assert cached("org/model") == folder / "snapshots" / OLD


@pytest.mark.parametrize("what", ["file", "far file", "folder", "snapshot", "snapshots"])
def test_links_that_leave_the_model(what: str, cache: Path, tmp_path: Path) -> None:
    folder = made(cache)
    secret = tmp_path / "secret"
    other = made(tmp_path / "other")
    match what:
        case "file":
            link, target = folder / "snapshots" / NEW / "model.safetensors", secret
        case "far file":  # a link to a link
            (folder / "blobs" / "0").symlink_to(secret)
            link, target = folder / "snapshots" / NEW / "w", folder / "blobs" / "0"
        case "folder":
            link, target = folder / "snapshots" / NEW / "onnx", tmp_path
        case "snapshot":
            link, target = folder / "snapshots" / NEW, other / "snapshots" / NEW
        case "snapshots":
            link, target = folder / "snapshots", other / "snapshots"
    if link.exists():
        os.rename(link, folder / "away")
    link.symlink_to(target)
    secret.write_text("secret")
    with pytest.raises(FormatError) as caught:
        cached("org/model")
    assert caught.value.code == "bad-path"
    assert "\n" not in str(caught.value)


def test_a_link_that_leads_nowhere_is_left_to_whoever_opens_it(cache: Path) -> None:
    folder = made(cache)
    (folder / "snapshots" / NEW / "w").symlink_to("../../blobs/missing")
    assert cached("org/model") == folder / "snapshots" / NEW


def test_a_link_in_a_circle(cache: Path) -> None:
    folder = made(cache)
    (folder / "snapshots" / NEW / "w").symlink_to("w")
    assert cached("org/model") == folder / "snapshots" / NEW


def test_limit_of_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(cache)
    monkeypatch.setattr(hub_cache, "FILE_LIMIT", 2)
    assert cached("org/model") is not None
    (folder / "snapshots" / NEW / "w").touch()
    with pytest.raises(FormatError) as caught:
        cached("org/model")
    assert caught.value.code == "limit"


def test_a_snapshot_that_cannot_be_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(cache)

    def denied(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(FormatError) as caught:
        cached("org/model")
    assert caught.value.code == "bad-path"


def test_how_far_links_may_lead(cache: Path, tmp_path: Path) -> None:
    folder = made(cache)
    assert link_root(folder / "snapshots" / NEW) == folder
    assert link_root(tmp_path) == tmp_path
    assert link_root(cache / "plain" / "snapshots" / NEW) == cache / "plain" / "snapshots" / NEW
    check_inside(folder / "snapshots" / NEW / "config.json", folder)
    with pytest.raises(FormatError):
        check_inside(tmp_path / "beside", folder)
