"""What was never fetched is named as that, whatever file it stands in place of."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from minift.checkpoints.open import load_model
from minift.errors import FormatError
from minift.formats import gguf, placeholder

GOLDEN = Path(__file__).parents[1] / "golden"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5\n"
INSTEAD = {
    "a Git LFS pointer": (POINTER, "git lfs pull, or fetch it again"),
    "an HTML page": (b"\n <!DOCTYPE html>\n<html><head></head></html>\n", "fetch it again"),
    "an XML page": (b'<?xml version="1.0"?><Error/>', "fetch it again"),
    "an empty file": (b"", "fetch it again"),
}
FILES = ("model.safetensors", "config.json", "pytorch_model.bin", "model.safetensors.index.json")


def folder_with(place, name, raw):
    """llama_gqa with `name` replaced by `raw`, and no other weights."""
    shutil.copytree(GOLDEN / "llama_gqa", place, dirs_exist_ok=True)
    if name != "config.json":
        (place / "model.safetensors").unlink()
    (place / name).write_bytes(raw)
    return place


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("what", INSTEAD)
def test_a_folder_says_what_stands_in_place_of_its_file(tmp_path, file, what):
    raw, todo = INSTEAD[what]
    with pytest.raises(FormatError) as caught:
        load_model(folder_with(tmp_path, file, raw))
    text = str(caught.value)
    assert f"{file}: file: found {what.replace('XML', 'HTML')}" in text
    assert todo in text
    assert "\n" not in text


@pytest.mark.parametrize("what", INSTEAD)
def test_so_does_a_gguf_file(tmp_path, what):
    (tmp_path / "a.gguf").write_bytes(INSTEAD[what][0])
    with pytest.raises(FormatError, match=what.replace("XML", "HTML")):
        gguf.read(tmp_path / "a.gguf")


@pytest.mark.parametrize("raw", [b"{}", b"[]", b"PK\x03\x04", b"GGUF", b"<s>\n</s>\n"])
def test_other_beginnings_are_left_to_the_readers(raw):
    placeholder.check("f", raw)


def test_a_download_cut_short_says_so(tmp_path):
    raw = (GOLDEN / "llama_gqa/model.safetensors").read_bytes()
    for size in (len(raw) - 1, len(raw) // 2, 100):
        with pytest.raises(FormatError, match="cut short: fetch it again") as caught:
            load_model(folder_with(tmp_path, "model.safetensors", raw[:size]))
        assert caught.value.code == "truncated"


@pytest.mark.parametrize("end", [".incomplete", ".part", ".crdownload", ".aria2"])
def test_a_download_that_was_not_finished_is_named(tmp_path, end):
    place = folder_with(tmp_path, f"model.safetensors{end}", b"x")
    with pytest.raises(FormatError, match=rf"found model\.safetensors\{end}, a download that was"):
        load_model(place)


def hostile():
    """For tests/hostile.py: every kind in place of every file."""

    def attempt(folder, file, raw):
        load_model(folder_with(folder, file, raw))

    return {
        f"{what} as {file}": (partial(attempt, file=file, raw=raw), code)
        for what, (raw, _) in INSTEAD.items()
        for file in FILES
        for code in [code_of(file, raw)]
    }


def code_of(file, raw):
    if raw:
        return "bad-magic"
    return {"model.safetensors": "truncated", "pytorch_model.bin": "bad-magic"}.get(
        file, "bad-json"
    )
