"""Tokenizers in GGUF metadata: what is read, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minift.errors import ConfigError, FormatError, Notice
from minift.tokenizers.byte_bpe import ALPHABET, ByteBPE
from minift.tokenizers.vocabulary import GGUF_NAMES, Added, from_gguf, to_gguf


def metadata(words: str = "", merges: str = "", **more: Any) -> dict[str, Any]:
    """GGUF metadata: <eos>, the 256 bytes, then `words`; merges are separated by commas."""
    tokens = ["<eos>", *ALPHABET, *words.split()]
    ours = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3] + [1] * (len(tokens) - 1),
        "merges": [merge for merge in merges.split(",") if merge],
        "eos_token_id": 0,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (ours | more).items()}


GGUF_LIES: list[tuple[str, Callable[[dict[str, Any]], object], str, str]] = [
    ("model", lambda m: "llama", "found llama, allowed one of gpt2", "unknown-field"),
    ("model", lambda m: 3, "found 3, allowed str", "bad-type"),
    ("pre", lambda m: "(a+)+$", "allowed one of", "unknown-field"),
    ("pre", lambda m: 5, "allowed str", "bad-type"),
    ("pre", lambda m: "deepseek-llm", "found deepseek-llm, allowed one of", "unknown-field"),
    ("tokens", lambda m: [], "token_type", "shape-mismatch"),
    ("tokens", lambda m: [*m["tokens"][:-1], "a"], "again, after", "dup-key"),
    ("tokens", lambda m: [*m["tokens"][:-1], ""], "not empty", "bad-type"),
    ("tokens", lambda m: [*m["tokens"][:-1], 7], "allowed text", "bad-type"),
    ("tokens", lambda m: [*m["tokens"][:-1], "\ud800"], "valid Unicode", "bad-utf8"),
    ("tokens", lambda m: [*m["tokens"][:-1], "x" * 65_537], "65,536", "limit"),
    ("tokens", lambda m: [["x"], *m["tokens"][1:]], "allowed text", "bad-type"),
    ("token_type", lambda m: m["token_type"][1:], "one a token", "shape-mismatch"),
    ("token_type", lambda m: [6, *m["token_type"][1:]], "1 to 5", "out-of-range"),
    ("token_type", lambda m: [True, *m["token_type"][1:]], "1 to 5", "out-of-range"),
    ("merges", lambda m: ["a zz"], r"merges\[0\]: found zz", "out-of-range"),
    ("merges", lambda m: ["a b"], "found ab", "out-of-range"),
    ("merges", lambda m: ["l o", "l o"], "each merge once", "dup-key"),
    ("merges", lambda m: ["lo"], "two parts", "bad-type"),
    ("merges", lambda m: ["l o w"], "two parts", "bad-type"),
    ("merges", lambda m: [7], "two parts", "bad-type"),
    ("eos_token_id", lambda m: 999, "0 to 257", "out-of-range"),
    ("eos_token_id", lambda m: -1, "0 to 257", "out-of-range"),
    ("eos_token_id", lambda m: True, "allowed int", "bad-type"),
    ("bos_token_id", lambda m: 2**64, "0 to 257", "out-of-range"),
    ("add_eos_token", lambda m: "yes", "allowed bool", "bad-type"),
    ("add_bos_token", lambda m: 1, "allowed bool", "bad-type"),
]


@pytest.mark.parametrize(("key", "lie", "text", "code"), GGUF_LIES)
def test_hostile_gguf(key: str, lie: Callable[[dict[str, Any]], object], text: str, code: str):
    data = metadata("lo", "l o")
    short = {name.removeprefix("tokenizer.ggml."): value for name, value in data.items()}
    data["tokenizer.ggml." + key] = lie(short)
    with pytest.raises(FormatError, match=text) as caught:
        ByteBPE.from_gguf(data, "x.gguf")
    assert (caught.value.path, caught.value.code) == ("x.gguf", code)


@pytest.mark.parametrize("key", ["model", "tokens", "merges"])
def test_gguf_without_a_field(key: str) -> None:
    data = metadata()
    del data["tokenizer.ggml." + key]
    with pytest.raises(FormatError, match=f"ggml.{key}: found nothing") as caught:
        ByteBPE.from_gguf(data, "x.gguf")
    assert caught.value.code == "missing-field"


def test_no_merge_makes_a_special_token() -> None:
    data = metadata("<e os>", "<e os>")
    with pytest.raises(FormatError, match="found <eos>, allowed ordinary tokens"):
        ByteBPE.from_gguf(data, "x.gguf")


def test_what_metadata_says() -> None:
    data = metadata("lo <x>", "l o", bos_token_id=0, add_bos_token=True, padding_token_id=3)
    data["tokenizer.ggml.pre"] = "llama-bpe"
    data["tokenizer.ggml.token_type"][-1] = 4
    data["tokenizer.chat_template"] = "{{ messages }}"
    vocab = from_gguf(data, "x.gguf")
    assert (vocab.bos, vocab.eos, vocab.pad, vocab.unk, vocab.add_bos) == (0, 0, 3, None, True)
    assert (vocab.pattern, vocab.ignore_merges, vocab.nfc) == ("llama3", True, False)
    assert vocab.added == {0: Added("<eos>"), 258: Added("<x>", special=False)}
    assert vocab.merges == [("l", "o")]
    assert vocab.template == "{{ messages }}"


def test_metadata_written_is_what_was_read() -> None:
    data = metadata("lo <x>", "l o", bos_token_id=0, add_bos_token=True, padding_token_id=3)
    data["tokenizer.ggml.pre"] = "llama-bpe"
    data["tokenizer.ggml.token_type"][-1] = 4
    data["tokenizer.chat_template"] = "{{ messages }}"
    assert to_gguf(from_gguf(data, "x.gguf"), "{{ messages }}", 259) == data


def test_rows_without_a_token_get_one_that_no_text_has() -> None:
    vocab = from_gguf(metadata("lo", "l o"), "x.gguf")
    data = to_gguf(vocab, None, 260)
    assert data["tokenizer.ggml.tokens"][256:] == [*vocab.tokens[256:], "[PAD0]", "[PAD1]"]
    assert data["tokenizer.ggml.token_type"][256:] == [1, 1, 5, 5]
    padded = ByteBPE.from_gguf(data, "x.gguf")
    assert padded.encode("[PAD0] lo") == ByteBPE(vocab, "x.gguf").encode("[PAD0] lo")


def test_what_a_file_leaves_out_is_as_llama_cpp_has_it() -> None:
    """llama-vocab.cpp: 11 for BOS and EOS, BOS before texts with Llama 3's pre-tokenizer."""
    bare = metadata(pre="llama-bpe", bos_token_id=5)
    del bare["tokenizer.ggml.eos_token_id"]
    del bare["tokenizer.ggml.token_type"]
    ours = ByteBPE.from_gguf(bare, "x.gguf")
    assert (ours.bos, ours.eos, ours.add_bos, ours.pad) == (5, 11, True, None)
    assert ours.wrap([7]) == ([5, 7], [0, 0])
    for pre in ("llama3", "llama-v3"):
        assert ByteBPE.from_gguf(metadata(pre=pre), "x.gguf").wrap([7])[0] == [11, 7]
    for pre in ("gpt-2", "qwen2", "smollm"):
        assert not ByteBPE.from_gguf(metadata(pre=pre), "x.gguf").add_bos
    off = metadata(pre="llama-bpe", add_bos_token=False)
    assert ByteBPE.from_gguf(off, "x.gguf").wrap([7])[0] == [7]
    ended = metadata(add_eos_token=True, add_bos_token=True, bos_token_id=5)
    assert ByteBPE.from_gguf(ended, "x.gguf").wrap([7])[0] == [5, 7, 0]
    few = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a"], "merges": []}
    with pytest.raises(FormatError, match="eos_token_id: found nothing"):
        from_gguf({f"tokenizer.ggml.{key}": value for key, value in few.items()}, "x.gguf")


@pytest.mark.parametrize("named", [True, False])
def test_a_file_without_a_pre_tokenizer_is_cut_by_the_default_and_that_is_said(
    named: bool,
) -> None:
    data = metadata(pre="default")
    if not named:
        del data["tokenizer.ggml.pre"]
    with pytest.warns(Notice, match="text is split as llama.cpp splits it by default"):
        assert from_gguf(data, "x.gguf").pattern == "default"


@pytest.mark.filterwarnings("ignore::minift.errors.Notice")
@pytest.mark.parametrize("row", sorted(set(GGUF_NAMES.values())))
def test_every_pattern_has_a_name_in_gguf(row: tuple[str, bool, bool]) -> None:
    pattern, nfc, whole = row
    vocab = from_gguf(metadata(), "x.gguf")
    vocab = replace(vocab, pattern=pattern, nfc=nfc, ignore_merges=whole)
    again = from_gguf(to_gguf(vocab, None, 257), "x.gguf")
    assert (again.pattern, again.nfc, again.ignore_merges) == row
    for lie in ({"ignore_merges": True, "nfc": True}, {"prefix_space": True}):
        with pytest.raises(ConfigError, match=f"a {pattern} tokenizer with nfc"):
            to_gguf(replace(vocab, **lie), None, 257)


@pytest.mark.parametrize("pre", ["olmo", "mpt"])
def test_two_names_of_gpt_neox(pre: str) -> None:
    """The pattern of GPT-2, and NFC before it: e with an accent is one character, C3 A9."""
    tokenizer = ByteBPE.from_gguf(metadata(pre=pre), "x.gguf")
    assert tokenizer.encode("e\u0301") == [1 + 0xC3, 1 + 0xA9]
    assert ByteBPE.from_gguf(metadata(), "x.gguf").encode("e\u0301") == [1 + ord("e"), 0xCD, 0x82]
    assert tokenizer.vocab.pattern == "gpt2"


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""

    def attempt(folder: Path, key: str, lie: Callable[[dict[str, Any]], object] | None) -> None:
        data = metadata("lo", "l o")
        short = {name.removeprefix("tokenizer.ggml."): value for name, value in data.items()}
        if lie is None:
            del data["tokenizer.ggml." + key]
        else:
            data["tokenizer.ggml." + key] = lie(short)
        ByteBPE.from_gguf(data, "x.gguf")

    more: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
        ("merges", lambda m: "l o", "bad-type"),
        ("merges", lambda m: ["l  o"], "bad-type"),
        ("merges", lambda m: [["l", "o", "w"]], "bad-type"),
        ("merges", lambda m: [f"{i} zz" for i in range(100_000)], "out-of-range"),
        ("tokens", lambda m: "abc", "bad-type"),
        ("tokens", lambda m: [f"{i}" for i in range(100_000)], "shape-mismatch"),
        ("tokens", lambda m: ["a" for _ in m["tokens"]], "dup-key"),
        ("token_type", lambda m: [0, *m["token_type"][1:]], "out-of-range"),
        ("token_type", lambda m: [1.0, *m["token_type"][1:]], "out-of-range"),
        ("token_type", lambda m: ["1", *m["token_type"][1:]], "out-of-range"),
        ("token_type", lambda m: 1, "bad-type"),
        ("eos_token_id", lambda m: 0.0, "bad-type"),
        ("eos_token_id", lambda m: [0], "bad-type"),
        ("padding_token_id", lambda m: -1, "out-of-range"),
        ("unknown_token_id", lambda m: 2**32, "out-of-range"),
        ("bos_token_id", lambda m: "0", "bad-type"),
        ("pre", lambda m: "falcon", "unknown-field"),
        ("pre", lambda m: ["gpt-2"], "bad-type"),
        ("model", lambda m: ["gpt2"], "bad-type"),
    ]
    cases: dict[str, tuple[Callable[[Path], object], str]] = {}
    for key, lie, *_, code in [*GGUF_LIES, *more]:
        name = f"{key} {len(cases)}"
        cases[name] = partial(attempt, key=key, lie=lie), code
    for key in ("model", "tokens", "merges"):
        cases[f"no {key}"] = partial(attempt, key=key, lie=None), "missing-field"
    return cases
