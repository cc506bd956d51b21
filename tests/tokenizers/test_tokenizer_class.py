"""Published forms of folders give the ids of transformers (tests/golden/make_published.py)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minift.checkpoints.tokenizers import tokenizer_in
from minift.errors import FormatError, Notice
from minift.tokenizers.interface import Tokenizer

GOLDEN_FILES = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((GOLDEN_FILES / "published.json").read_text())
FOLDERS = GOLDEN["folders"]
BPE = json.loads((GOLDEN_FILES / "tokens.json").read_text())["tokenizer"]["model"]
WORDS = json.loads((GOLDEN_FILES / "wordpiece.json").read_text())["settings"][0]["tokenizer"]
LINES = "\n".join(WORDS["model"]["vocab"]) + "\n"
SHARED = {
    "$bpe": BPE["vocab"],
    "$merges": BPE["merges"],
    "$words": WORDS["model"]["vocab"],
    "$lines": LINES,
    "$lines\r": LINES.replace("\n", "\r\n"),
    "$lines again": LINES.replace("the\n", "the\n\nfilm\n \n", 1) + "a\n\n",
    "$merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in BPE["merges"]),
}
# What is said of a folder, where it is read otherwise than one of its files says.
SAID = {
    "gpt2: BOS beside tokenizer.json": "puts no BOS token before texts; add_bos_token true",
    "gpt2: a space before texts": "sets its own pre_tokenizer.add_prefix_space, as",
    "gpt2: a new token for padding": "are added to it: '\\[P\\]' \\(pad_token\\)",
    "gpt2: named tokens": "are added to it: '<image>', '<boi>'",
    "smollm: the class of GPT-2": "GPT2Tokenizer sets its own pre_tokenizer, as",
    "roberta: tokenizer.json": "class RobertaTokenizer sets its own post_processor, as",
    "neox: without a word": "GPTNeoXTokenizer sets its own normalizer, as",
    "qwen2: another class, another file": "own normalizer, pre_tokenizer.pretokenizers, as",
    "llama3: the class of Llama, no BOS": "puts the BOS token before texts; add_bos_token false",
    "bert: tokenizer.json alone, which keeps the case": "sets its own normalizer.lowercase",
    "bert: accents and Chinese": "normalizer.handle_chinese_chars, normalizer.strip_accents, as",
}


def put_back(value: Any) -> Any:
    """A file's content, the vocabularies in their places."""
    if isinstance(value, dict) and "$join" in value:
        first, second = value["$join"]
        return put_back(first) | second
    if isinstance(value, dict):
        return {key: put_back(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [put_back(inner) for inner in value]
    return SHARED.get(value, value) if isinstance(value, str) else value


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        content = put_back(content)
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_bytes(text.encode())
    return folder


def read(folder: Path, said: str | None) -> Tokenizer:
    if said is None:
        return tokenizer_in(folder)
    with pytest.warns(Notice, match=said):
        return tokenizer_in(folder)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_published_folder_is_read_as_transformers_reads_it(tmp_path: Path, name: str) -> None:
    expected = FOLDERS[name]
    tokenizer = read(write(tmp_path, expected["files"]), SAID.get(name))
    for text, ids in zip(GOLDEN["texts"], expected["ids"], strict=True):
        assert tokenizer.encode(text) == ids, ascii(text)
    a, b = map(tokenizer.encode, GOLDEN["pair"])
    assert tokenizer.wrap(a)[0] == expected["one"]
    assert list(tokenizer.wrap(a, b)) == expected["two"]
    for role, i in expected["roles"].items():
        if i is not None:
            assert getattr(tokenizer, role) == i, role


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_saved_of_it_gives_the_same(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        tokenizer = tokenizer_in(write(tmp_path, FOLDERS[name]["files"]))
    (second := tmp_path / "second").mkdir()
    for file, raw in tokenizer.files().items():
        (second / file).write_bytes(raw)
    write(second, {"config.json": FOLDERS[name]["files"]["config.json"]})
    again = tokenizer_in(second)
    assert again.files() == tokenizer.files()
    for text in GOLDEN["texts"]:
        assert again.encode(text) == tokenizer.encode(text), ascii(text)
    assert again.wrap([5], [6]) == tokenizer.wrap([5], [6])


BARE = {"vocab.json": "$bpe", "merges.txt": "$merges.txt"}
LLAMA = FOLDERS["llama3: tokenizer.json"]["files"]["tokenizer.json"]


def test_the_end_of_text_that_only_config_json_names(tmp_path: Path) -> None:
    files = {
        "tokenizer.json": LLAMA,
        "config.json": {"model_type": "llama", "eos_token_id": [6, 2]},
    }
    tokenizer = read(write(tmp_path, files), "'<|eot_id|>', 6, as config.json says")
    assert (tokenizer.eos, tokenizer.bos, tokenizer.add_bos) == (6, 3, True)
    write(tmp_path, {"config.json": {"model_type": "llama"}})
    with pytest.raises(FormatError, match="eos_token: found nothing"):
        tokenizer_in(tmp_path)
    write(tmp_path, {"config.json": {"model_type": "llama", "eos_token_id": 99_999}})
    with pytest.raises(FormatError, match="eos_token: found nothing"):
        tokenizer_in(tmp_path)


def test_a_token_that_the_embedding_has_no_row_for_is_left_out(tmp_path: Path) -> None:
    model = {"model_type": "gpt2", "vocab_size": 700}
    files = BARE | {"config.json": model, "tokenizer_config.json": {"pad_token": "[P]"}}
    tokenizer = read(
        write(tmp_path, files),
        r"without a row of the embedding, are left out: '\[P\]' \(pad_token\)",
    )
    assert (tokenizer.vocab_size, tokenizer.pad) == (700, None)


def test_a_token_with_the_id_of_another_is_left_out(tmp_path: Path) -> None:
    files = BARE | {"added_tokens.json": {"[P]": 5}, "config.json": {"model_type": "gpt2"}}
    assert "[P]" not in read(write(tmp_path, files), "left out: .* as 5").special


def test_listed_tokens_beyond_the_embedding_are_left_out(tmp_path: Path) -> None:
    """A megabyte of them, and int(1e30) beside: both are refused by nobody else."""
    row = {"content": "", "lstrip": False, "normalized": False, "special": False, "rstrip": False}
    rows = {str(i): row | {"content": f"<unused{i}>", "single_word": False} for i in range(6415)}
    config = {
        "added_tokens_decoder": rows,
        "model_max_length": int(1e30),
        "eos_token": "<|im_end|>",
    }
    files = BARE | {"config.json": {"model_type": "gpt2", "vocab_size": 700}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    assert (tmp_path / "tokenizer_config.json").stat().st_size > 1 << 20
    tokenizer = read(write(tmp_path, files), "left out: .* and 6,412 more")
    assert (tokenizer.vocab_size, tokenizer.eos) == (700, 2)


def test_a_role_that_text_can_make_stays_an_ordinary_token(tmp_path: Path) -> None:
    """Some people pad with a word: it is read in texts all the same."""
    word = "".join(BPE["merges"][-1])
    files = BARE | {
        "tokenizer_config.json": {"pad_token": word},
        "config.json": {"model_type": "gpt2"},
    }
    tokenizer = tokenizer_in(write(tmp_path, files))
    assert tokenizer.pad == BPE["vocab"][word]
    assert word not in tokenizer.special


def test_ids_that_no_token_has_are_filled(tmp_path: Path) -> None:
    vocab = BPE["vocab"] | {"later": 705}
    files = {
        "vocab.json": vocab,
        "merges.txt": "$merges.txt",
        "config.json": {"model_type": "gpt2"},
    }
    tokenizer = tokenizer_in(write(tmp_path, files))
    assert tokenizer.vocab_size == 706
    assert tokenizer.decode([702, 705]) == "later"
    assert 702 not in tokenizer.encode("[PAD702] later")


def test_a_version_that_is_not_known(tmp_path: Path) -> None:
    for version in ("1.0", None):
        tokenizer_in(write(tmp_path, {"tokenizer.json": WORDS | {"version": version}}))
    for version in ("2.0", "0.9", 1.0, 1, [], True):
        with pytest.raises(FormatError, match="version") as caught:
            tokenizer_in(write(tmp_path, {"tokenizer.json": WORDS | {"version": version}}))
        assert caught.value.code == "bad-version"


def test_files_of_a_class_that_is_not_known_are_not_guessed(tmp_path: Path) -> None:
    config = {"tokenizer_class": "BertJapaneseTokenizer"}
    for files in ({"vocab.txt": "$lines"}, BARE):
        with pytest.raises(FormatError, match="found BertJapaneseTokenizer, allowed a tokenizer"):
            tokenizer_in(write(tmp_path, files | {"tokenizer_config.json": config}))
        for name in files:
            (tmp_path / name).unlink()
    files = BARE | {"tokenizer_config.json": {"eos_token": "<|im_end|>"}}
    assert read(write(tmp_path, files), "read as GPT2Tokenizer").eos == 2


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py: what stands in the files beside a vocabulary."""

    def attempt(folder: Path, files: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            tokenizer_in(write(folder, files))

    gpt2 = BARE | {"config.json": {"model_type": "gpt2"}}
    bert = {"vocab.txt": "$lines"}
    row = {"content": "<x>", "special": True}
    many = {str(i): row | {"content": f"<{i}>"} for i in range(12_000)}
    configs: dict[str, tuple[dict[str, Any], str]] = {
        "a class that is a number": ({"tokenizer_class": 5}, "bad-type"),
        "a role that is a number": ({"eos_token": 5}, "bad-type"),
        "a role that is a list": ({"pad_token": ["[P]"]}, "bad-type"),
        "a role without a text": ({"pad_token": {"content": 5}}, "bad-type"),
        "added tokens in a list": ({"added_tokens_decoder": [row]}, "bad-type"),
        "an added token that is none": ({"added_tokens_decoder": {"700": 5}}, "bad-type"),
        "an added token without a text": ({"added_tokens_decoder": {"700": {}}}, "missing-field"),
        "an added token's flag": (
            {"added_tokens_decoder": {"700": row | {"lstrip": 1}}}, "bad-type",
        ),
        "an id that is a word": ({"added_tokens_decoder": {"x": row}}, "out-of-range"),
        "a negative id": ({"added_tokens_decoder": {"-1": row}}, "out-of-range"),
        "an id far away": ({"added_tokens_decoder": {"3999999": row}}, "limit"),
        "an id without end": ({"added_tokens_decoder": {"9" * 5000: row}}, "out-of-range"),
        "an id of 10^9": ({"added_tokens_decoder": {"999999999": row}}, "out-of-range"),
        "half a surrogate": ({"pad_token": "\ud800"}, "bad-utf8"),
        "a token over the limit": (
            {"added_tokens_decoder": {"700": row | {"content": "x" * 65_537}}}, "limit",
        ),
        "more special tokens in a number": ({"extra_special_tokens": 5}, "bad-type"),
        "numbers as special tokens": ({"additional_special_tokens": [5]}, "bad-type"),
        "a switch in words": ({"add_prefix_space": "yes"}, "bad-type"),
        "BOS in words": ({"add_bos_token": "yes"}, "bad-type"),
        "a template in a number": ({"chat_template": 5}, "bad-type"),
        "nothing named and a million of them": (
            {"added_tokens_decoder": many, "chat_template": 5}, "bad-type",
        ),
    }  # fmt: skip
    cases = {
        f"tokenizer_config.json: {name}": (gpt2 | {"tokenizer_config.json": value}, code)
        for name, (value, code) in configs.items()
    }
    beside: dict[str, tuple[dict[str, Any], str]] = {
        "special_tokens_map.json: a number": (
            {"special_tokens_map.json": {"eos_token": 5}}, "bad-type",
        ),
        "special_tokens_map.json: a list": ({"special_tokens_map.json": []}, "bad-type"),
        "special_tokens_map.json: cut": ({"special_tokens_map.json": '{"eos_'}, "bad-json"),
        "special_tokens_map.json: nested": ({"special_tokens_map.json": "[" * 10**6}, "limit"),
        "added_tokens.json: a text": ({"added_tokens.json": {"<x>": "700"}}, "out-of-range"),
        "added_tokens.json: negative": ({"added_tokens.json": {"<x>": -1}}, "out-of-range"),
        "added_tokens.json: true": ({"added_tokens.json": {"<x>": True}}, "out-of-range"),
        "added_tokens.json: huge": ({"added_tokens.json": {"<x>": 2**64}}, "out-of-range"),
        "added_tokens.json: far away": ({"added_tokens.json": {"<x>": 3_999_999}}, "limit"),
        "added_tokens.json: one id twice": ({"added_tokens.json": {"a": 700, "b": 700}}, "dup-key"),
        "added_tokens.json: a list": ({"added_tokens.json": ["<x>"]}, "bad-type"),
        "chat_template.json: a number": ({"chat_template.json": {"chat_template": 5}}, "bad-type"),
        "chat_template.json: a list": ({"chat_template.json": [5]}, "bad-type"),
        "chat_template.json: cut": ({"chat_template.json": "{"}, "bad-json"),
        "merges.txt: three parts": ({"merges.txt": "#version: 0.2\na b c\n"}, "bad-type"),
        "merges.txt: one part": ({"merges.txt": "ab\n"}, "bad-type"),
        "merges.txt: two spaces": ({"merges.txt": "a  b\n"}, "bad-type"),
        "merges.txt: unknown parts": ({"merges.txt": "a zzz\n"}, "out-of-range"),
        "merges.txt: one twice": ({"merges.txt": "$merges.txt twice"}, "dup-key"),
        "merges.txt: a megabyte of one": ({"merges.txt": "a" * 10**6}, "bad-type"),
        "merges.txt: a megabyte of lines": ({"merges.txt": "x y\n" * 250_000}, "out-of-range"),
        "vocab.json: a list": ({"vocab.json": ["a"]}, "bad-type"),
        "vocab.json: nothing": ({"vocab.json": {}}, "missing-field"),
        "vocab.json: a text": ({"vocab.json": {"a": "0"}}, "bad-type"),
        "vocab.json: true": ({"vocab.json": {"a": True}}, "bad-type"),
        "vocab.json: negative": ({"vocab.json": {"a": -1}}, "out-of-range"),
        "vocab.json: huge": ({"vocab.json": {"a": 2**63}}, "out-of-range"),
        "vocab.json: far away": ({"vocab.json": {"a": 3_999_999}}, "limit"),
        "vocab.json: one id twice": ({"vocab.json": BPE["vocab"] | {"new": 5}}, "dup-key"),
    }  # fmt: skip
    twice = SHARED["$merges.txt"] + " ".join(BPE["merges"][0])
    for name, (files, code) in beside.items():
        if files.get("merges.txt") == "$merges.txt twice":
            files = {"merges.txt": twice}
        cases[name] = gpt2 | files, code
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        cases[f"vocab.txt: {key}"] = bert | {"tokenizer_config.json": {key: "no"}}, "bad-type"
    cases["vocab.txt: an unknown token that is none"] = (
        bert | {"tokenizer_config.json": {"unk_token": "<nowhere>"}},
        "missing-field",
    )
    cases["vocab.txt: one line half a million times"] = (
        {"vocab.txt": LINES + "a\n" * 400_000},
        "limit",
    )
    return {name: (partial(attempt, files=files), code) for name, (files, code) in cases.items()}
