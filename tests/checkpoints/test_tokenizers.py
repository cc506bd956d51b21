"""The tokenizer that a folder holds, by its files."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest

from minift.checkpoints.tokenizers import template_name, text_in, tokenizer_in
from minift.errors import FormatError
from minift.tokenizers.byte_bpe import ByteBPE
from minift.tokenizers.wordpiece import WordPiece

GOLDEN = Path(__file__).parents[1] / "golden"
WORDS = json.loads((GOLDEN / "wordpiece.json").read_text())["settings"][0]["tokenizer"]


def test_the_file_says_which(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS))
    assert isinstance(tokenizer_in(tmp_path), WordPiece)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    )
    assert isinstance(tokenizer_in(tmp_path), WordPiece)


def test_what_a_saved_folder_holds_is_read_again(tmp_path, tiny_tokenizer):
    tokenizer = tiny_tokenizer
    for name, data in tokenizer.files().items():
        (tmp_path / name).write_bytes(data)
    again = tokenizer_in(tmp_path)
    assert isinstance(again, ByteBPE)
    assert again.encode("two  words") == tokenizer.encode("two  words")
    assert template_name(again) == template_name(tokenizer)


def test_no_tokenizer_and_one_that_is_no_text(tmp_path):
    with pytest.raises(FormatError):
        tokenizer_in(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff")
    with pytest.raises(FormatError) as caught:
        text_in(tmp_path / "vocab.txt")
    assert caught.value.code == "bad-utf8"


def hostile():
    """For tests/hostile.py: what stands on the disk in place of a tokenizer's files."""
    sound = json.dumps(WORDS).encode()
    list_of = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]).encode()

    def attempt(folder, files):
        for name, content in files.items():
            path = folder / name
            if callable(content):
                content(path)
            else:
                path.write_bytes(content)
        tokenizer_in(folder)

    def hole(size):
        def make(path):
            path.touch()
            os.truncate(path, size)

        return make

    def link(target):
        return lambda path: path.symlink_to(target)

    strange = {
        "nothing": (b"", "bad-json"),
        "an empty list": (b"[]", "bad-type"),
        "null": (b"null", "bad-type"),
        "no model": (b"{}", "missing-field"),
        "half a file": (sound[: len(sound) // 2], "bad-json"),
        "a file and a half": (sound + sound[: len(sound) // 2], "bad-json"),
        "UTF-16": (sound.decode().encode("utf-16"), "bad-utf8"),
        "a byte order mark": (b"\xef\xbb\xbf" + sound, "bad-json"),
        "not UTF-8": (sound.replace(b"the", b"th\xff", 1), "bad-utf8"),
        "a lone surrogate": (sound.replace(b"the", b"\\ud800", 1), "bad-utf8"),
        "a field twice": (sound[:-1] + b',"model":{}}', "dup-key"),
        "a token twice": (sound.replace(b'"vocab": {', b'"vocab": {"the": 0, ', 1), "dup-key"),
        "NaN": (sound[:-1] + b',"padding":NaN}', "bad-json"),
        "an id without end": (sound.replace(b": 5,", b": " + b"5" * 5000 + b",", 1), "limit"),
        "a million brackets": (b"[" * (1 << 20), "limit"),
        "a megabyte of lists": (b'{"model":[' + b"[]," * 340_000 + b"[]]}", "bad-type"),
        "a megabyte of tokens": (
            b'{"model":{"type":"WordPiece","vocab":{'
            + b",".join(b'"%d":%d' % (i, i) for i in range(70_000)) + b"}}}", "missing-field",
        ),
        "a hole of 65 MiB": (hole((64 << 20) + 1), "too-large"),
        "a hole of 1 TiB": (hole(1 << 40), "too-large"),
        "a folder": (lambda path: path.mkdir(), "bad-path"),
        "a pipe": (os.mkfifo, "bad-path"),
        "a link to itself": (link("tokenizer.json"), "bad-path"),
        "a link to a device": (link("/dev/zero"), "bad-path"),
    }  # fmt: skip
    cases = {
        f"tokenizer.json: {name}": ({"tokenizer.json": content}, code)
        for name, (content, code) in strange.items()
    }
    beside = {
        "nothing": (b"", "bad-json"), "a list": (b"[]", "bad-type"),
        "a field twice": (b'{"a":1,"a":1}', "dup-key"),
        "a megabyte and a byte": (b'{"a":"' + b"x" * (1 << 20) + b'"}', "too-large"),
        "a million brackets": (b"[" * (1 << 20), "limit"), "NaN": (b'{"a":NaN}', "bad-json"),
        "a folder": (lambda path: path.mkdir(), "bad-path"),
        "a pipe": (os.mkfifo, "bad-path"), "no text": (b"\xff\xfe", "bad-utf8"),
    }  # fmt: skip
    for name, (content, code) in beside.items():
        files = {"tokenizer.json": sound, "tokenizer_config.json": content}
        cases[f"tokenizer_config.json: {name}"] = files, code
    lists = {
        "no text": (b"\xff\xfe", "bad-utf8"),
        "UTF-16": (list_of.decode().encode("utf-16"), "bad-utf8"),
        "a byte order mark": (b"\xef\xbb\xbf" + list_of, "missing-field"),
        "a token cut in a character": (list_of + b"\n\xc3", "bad-utf8"),
        "a surrogate": (list_of + b"\n\xed\xa0\x80", "bad-utf8"),
        "a token twice": (list_of + b"\na", "dup-key"),
        "an empty line": (list_of + b"\n\nb", "limit"),
        "half a million lines": (b"a\n" * 500_000, "missing-field"),
        "a megabyte of one token": (list_of + b"\n" + b"x" * (1 << 20), "limit"),
        "a hole of 1 TiB": (hole(1 << 40), "too-large"), "zeros": (bytes(1 << 20), "missing-field"),
        "a folder": (lambda path: path.mkdir(), "bad-path"), "a pipe": (os.mkfifo, "bad-path"),
    }  # fmt: skip
    for name, (content, code) in lists.items():
        cases[f"vocab.txt: {name}"] = {"vocab.txt": content}, code
    cases["no file at all"] = {}, "bad-path"
    cases["a dead link"] = {"tokenizer.json": link("nowhere")}, "bad-path"
    return {name: (partial(attempt, files=files), code) for name, (files, code) in cases.items()}
