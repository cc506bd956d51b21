"""tokenizer.json: saved as the library writes it, read as others write it, hostile ones refused."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from minift.errors import EncodeError, FormatError
from minift.tokenizers.byte_bpe import ALPHABET, ByteBPE
from minift.tokenizers.post_processor import to_json
from minift.tokenizers.wrapping import after

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden/tokens.json").read_text())
CONFIG = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": None}
PATTERNS = sorted(GOLDEN["small"])


def small(pattern: str = "gpt2", **changes: Any) -> ByteBPE:
    """The golden's small vocabulary, cut by `pattern`; `changes` are fields of tokenizer.json."""
    data = copy.deepcopy(GOLDEN["tokenizer"]) | GOLDEN["small"][pattern]["tokenizer"]
    data["model"]["ignore_merges"] = pattern == "llama3"
    return ByteBPE.from_json(data | changes, CONFIG, "tokenizer.json")


@pytest.mark.parametrize("pattern", PATTERNS)
def test_saved_files_say_what_the_library_wrote(pattern: str) -> None:
    tokenizer = small(pattern)
    files = tokenizer.files()
    saved = json.loads(files["tokenizer.json"])
    library = GOLDEN["tokenizer"]
    assert saved["model"] == library["model"] | {"ignore_merges": pattern == "llama3"}
    assert saved["added_tokens"] == library["added_tokens"]
    expected = GOLDEN["small"][pattern]["tokenizer"]
    assert {key: saved[key] for key in expected} == expected
    again = ByteBPE.from_json(saved, json.loads(files["tokenizer_config.json"]), "tokenizer.json")
    assert again.files() == files
    assert (again.eos, again.bos, again.pad, again.add_bos) == (2, 1, None, False)


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


def test_bos_and_template_survive_saving() -> None:
    data = metadata(bos_token_id=0, add_bos_token=True, padding_token_id=5)
    data["tokenizer.chat_template"] = "{{ messages }}"
    first = ByteBPE.from_gguf(data, "x.gguf")
    files = {name: json.loads(raw) for name, raw in first.files().items()}
    again = ByteBPE.from_json(files["tokenizer.json"], files["tokenizer_config.json"], "t.json")
    for tokenizer in (first, again):
        assert (tokenizer.bos, tokenizer.add_bos, tokenizer.pad) == (0, True, 5)
        assert tokenizer.template == "{{ messages }}"
        assert tokenizer.encode("a") == [1 + ord("a")]  # whoever makes a row adds BOS, not encode


def test_old_spellings_of_tokenizer_json() -> None:
    """No model type, merges as "a b", no use_regex, an only special token, a named template."""
    data = copy.deepcopy(GOLDEN["tokenizer"]) | GOLDEN["small"]["gpt2"]["tokenizer"]
    del data["model"]["type"], data["pre_tokenizer"]["use_regex"]
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
    data["added_tokens"] = data["added_tokens"][:1]
    tokenizer = ByteBPE.from_json(data, None, "tokenizer.json")
    assert tokenizer.eos == 0
    for text, ids in zip(GOLDEN["texts"], GOLDEN["small"]["gpt2"]["ids"], strict=True):
        assert tokenizer.encode(text) == ids
    named = [{"name": "tool_use", "template": "A"}, {"name": "default", "template": "B"}]
    config = {"eos_token": {"content": "<|endoftext|>"}, "chat_template": named}
    assert ByteBPE.from_json(data, config, "tokenizer.json").template == "B"


LIKE = json.loads(Path(__file__).parents[1].joinpath("golden/byte_level.json").read_text())
KINDS = ("roberta", "roberta_spaced", "neox")


def like(kind: str) -> ByteBPE:
    """The golden's files of RoBERTa's or GPT-NeoX's kind, with the vocabulary put back."""
    data = copy.deepcopy(LIKE[kind]["tokenizer.json"])
    model = GOLDEN["tokenizer"]["model"]
    data["model"]["vocab"] = model["vocab"] | LIKE[kind]["more_vocab"]
    data["model"]["merges"] = model["merges"]
    return ByteBPE.from_json(data, LIKE[kind]["tokenizer_config.json"], "tokenizer.json")


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_roberta_and_neox(kind: str, saved: bool) -> None:
    tokenizer, golden = like(kind), LIKE[kind]
    if saved:
        files = tokenizer.files()
        data, config = (json.loads(raw) for raw in files.values())
        tokenizer = ByteBPE.from_json(data, config, "tokenizer.json")
        assert tokenizer.files() == files
    texts = GOLDEN["texts"] + golden["texts"]
    for text, ids, decoded in zip(texts, golden["ids"], golden["decoded"], strict=True):
        assert tokenizer.encode(text) == ids, ascii(text)
        if decoded is not None:
            assert tokenizer.decode(ids) == decoded
    a, b = tokenizer.encode("The keeper"), tokenizer.encode(" lit it")
    for row, given in ((golden["single"], (a,)), (golden["pair"], (a, b))):
        assert tokenizer.wrap(*given) == (row["ids"], row["types"])
    assert not tokenizer.add_bos


def test_the_roles_of_roberta_and_neox() -> None:
    roberta, neox = like("roberta"), like("neox")
    assert (roberta.bos, roberta.cls, roberta.pad) == (700, 700, 701)
    assert (roberta.eos, roberta.sep, roberta.mask) == (702, 702, 704)
    assert (neox.bos, neox.eos, neox.pad) == (0, 0, 700)
    assert (neox.cls, neox.sep, neox.mask) == (None, None, None)
    assert set(neox.special) == {"<|endoftext|>", "<|padding|>"}


def test_add_bos_that_only_the_config_says_is_wrapped_and_saved() -> None:
    data = GOLDEN["tokenizer"] | {"post_processor": None}
    tokenizer = ByteBPE.from_json(data, CONFIG | {"add_bos_token": True}, "tokenizer.json")
    assert tokenizer.wrap([5, 6]) == ([1, 5, 6], [0, 0, 0])
    saved = json.loads(tokenizer.files()["tokenizer.json"])
    assert saved["post_processor"] == to_json(after(1), tokenizer.vocab.tokens)
    assert small().wrap([5, 6]) == ([5, 6], [0, 0])


def token(**fields: Any) -> dict[str, Any]:
    return {"id": 700, "content": "<x>", "special": True} | fields


STARTS_WITH_EOS = to_json(after(2), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])

# (the path to a field of tokenizer.json, what is put there, the message, the code)
JSON_LIES: list[tuple[str, Any, str, str]] = [
    ("surprise", 1, "an unknown field", "unknown-field"),
    ("model", None, "allowed dict", "bad-type"),
    ("model.type", "Unigram", "one of BPE", "unknown-field"),
    ("model.dropout", 0.1, "model.dropout", "unknown-field"),
    ("model.byte_fallback", True, "model.byte_fallback", "unknown-field"),
    ("model.end_of_word_suffix", "</w>", "end_of_word_suffix", "unknown-field"),
    ("model.surprise", 1, "an unknown field", "unknown-field"),
    ("model.ignore_merges", 1, "allowed bool", "bad-type"),
    ("model.vocab", [], "allowed dict", "bad-type"),
    ("model.vocab.a", 5, "again", "dup-key"),
    ("model.vocab.a", -1, "0 to 699", "out-of-range"),
    ("model.vocab.a", 2**70, "0 to 699", "out-of-range"),
    ("model.vocab.a", 1.0, "allowed int", "bad-type"),
    ("model.vocab.new", 701, "0 to 700", "out-of-range"),
    ("model.merges", {}, "allowed list", "bad-type"),
    ("model.merges", [["a"]], "two parts", "bad-type"),
    ("model.merges", [["a", ""]], "two parts", "bad-type"),
    ("model.merges", [["q", "zzz"]], "found zzz", "out-of-range"),
    ("normalizer", {"type": "Lowercase"}, "one of NFC", "unknown-field"),
    ("normalizer", "NFC", "allowed dict", "bad-type"),
    ("decoder", {"type": "WordPiece"}, "one of ByteLevel", "unknown-field"),
    ("decoder", None, "allowed dict", "bad-type"),
    ("pre_tokenizer", None, "pre_tokenizer", "unsafe"),
    ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer", "unsafe"),
    ("pre_tokenizer", {"type": "ByteLevel", "add_prefix_space": 1}, "known forms", "unsafe"),
    ("pre_tokenizer.pretokenizers.1.add_prefix_space", True, "known forms", "unsafe"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": 5}, "known forms", "unsafe"),
    ("pre_tokenizer.pretokenizers", [{"type": "Split", "pattern": "a"}], "known forms", "unsafe"),
    ("post_processor", {"type": "Surprise"}, "post_processor.type", "unknown-field"),
    ("post_processor", {"type": "BertProcessing"}, "post_processor.cls", "out-of-range"),
    ("post_processor", 5, "an object", "bad-type"),
    ("post_processor", {"type": "TemplateProcessing"}, "special_tokens", "missing-field"),
    ("post_processor", STARTS_WITH_EOS, "only the BOS token, 1", "unknown-field"),
    ("post_processor", {"type": "Sequence", "processors": [5]}, "an object", "bad-type"),
    ("added_tokens", 5, "a list", "bad-type"),
    ("added_tokens", [5], "an object", "bad-type"),
    ("added_tokens", [token(content="")], "at least one", "out-of-range"),
    ("added_tokens", [token(id=-1)], "0 to 700", "out-of-range"),
    ("added_tokens", [token(id=2**40)], "0 to 700", "out-of-range"),
    ("added_tokens", [token(id=5)], "again", "dup-key"),
    ("added_tokens", [token(), token()], "each once", "dup-key"),
    ("added_tokens", [token(content="a")], "its id in model.vocab", "dup-key"),
    ("added_tokens", [token(id=True)], "allowed int", "bad-type"),
    ("added_tokens", [token(special=None)], "allowed bool", "bad-type"),
    ("added_tokens", [token(special=False, lstrip=True)], "lstrip", "unknown-field"),
    ("added_tokens", [token(surprise=1)], "an unknown field", "unknown-field"),
]


@pytest.mark.parametrize(("place", "value", "text", "code"), JSON_LIES)
def test_hostile_json(place: str, value: Any, text: str, code: str) -> None:
    data = copy.deepcopy(GOLDEN["tokenizer"])
    *parents, last = place.split(".")
    inner = data
    for parent in parents:
        inner = inner[int(parent) if isinstance(inner, list) else parent]
    inner[last] = value
    config = None if place == "added_tokens" and value == [token()] else CONFIG
    with pytest.raises(FormatError, match=text) as caught:
        ByteBPE.from_json(data, config, "tokenizer.json")
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("config", "text", "code"),
    [
        (None, "eos_token: found nothing", "missing-field"),
        ({}, "eos_token: found nothing", "missing-field"),
        ({"eos_token": "<nowhere>"}, "a token of the vocabulary", "out-of-range"),
        ({"eos_token": {"content": ["x"]}}, "a token of the vocabulary", "out-of-range"),
        (CONFIG | {"chat_template": 5}, "chat_template", "bad-type"),
        (CONFIG | {"chat_template": [{"name": "x"}]}, "chat_template", "bad-type"),
        (CONFIG | {"add_bos_token": "yes"}, "add_bos_token", "bad-type"),
    ],
)
def test_hostile_config(config: dict[str, Any] | None, text: str, code: str) -> None:
    with pytest.raises(FormatError, match=text) as caught:
        ByteBPE.from_json(GOLDEN["tokenizer"], config, "folder/tokenizer.json")
    assert caught.value.path == "folder/tokenizer_config.json"
    assert caught.value.code == code


def test_mutated_files_are_read_or_refused_and_nothing_else() -> None:
    """600 files with one value of them replaced: a tokenizer, or a FormatError."""
    draw, refused = random.Random(11), 0
    strange: list[Any] = [
        None,
        True,
        0,
        -1,
        2**64,
        1.5,
        "",
        "a",
        "\ud800",
        [],
        [[]],
        {},
        {"type": []},
    ]
    for _ in range(600):
        pattern = draw.choice(PATTERNS)
        data = copy.deepcopy(GOLDEN["tokenizer"]) | GOLDEN["small"][pattern]["tokenizer"]
        data["post_processor"] = {"type": "Sequence", "processors": [data["decoder"]]}
        files = {"data": data, "config": dict(CONFIG, chat_template=[{"name": "default"}])}
        files["config"]["chat_template"][0]["template"] = "x"
        inner: Any = files
        while True:  # walk down to a random place
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            key = draw.choice(keys)
            deeper = isinstance(inner[key], dict | list) and inner[key]
            if inner is not files and (not deeper or draw.random() < 0.2):
                break
            inner = inner[key]
        inner[key] = draw.choice(strange)
        try:
            tokenizer = ByteBPE.from_json(files["data"], files["config"], "tokenizer.json")
            assert tokenizer.decode(tokenizer.encode("Hello 12")) == "Hello 12"
        except FormatError:
            refused += 1
        except EncodeError:
            pass  # a byte token was renamed
    assert refused > 400
