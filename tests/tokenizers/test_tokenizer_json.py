"""tokenizer.json: saved as the library writes it, read as others write it, hostile ones refused."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minift.errors import EncodeError, FormatError
from minift.formats import strict_json
from minift.tokenizers.byte_bpe import ALPHABET, ByteBPE
from minift.tokenizers.post_processor import to_json
from minift.tokenizers.wordpiece import WordPiece
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
    ("added_tokens", [token(special=False, lstrip=1)], "lstrip", "bad-type"),
    ("version", "2.0", "version: found 2.0", "bad-version"),
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


def of_bytes() -> bytes:
    """A tokenizer.json of the bytes and two merges."""
    data = copy.deepcopy(GOLDEN["tokenizer"]) | {"added_tokens": [token(id=258)]}
    data |= GOLDEN["small"]["gpt2"]["tokenizer"]
    vocab = {text: i for i, text in enumerate([*ALPHABET, "lo", "low"])}
    data["model"] |= {"vocab": vocab, "merges": [["l", "o"], ["lo", "w"]]}
    return json.dumps(data).encode()


WHOLE = of_bytes()
NUMBERS_AT = [found.start() for found in re.finditer(rb"\d+(?=[,}])", WHOLE)]


def replaced(seed: random.Random) -> bytes:
    inner: Any = json.loads(WHOLE)
    whole = inner
    while True:  # walk down to a random place
        key = seed.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
        if not (isinstance(inner[key], dict | list) and inner[key]) or seed.random() < 0.1:
            break
        inner = inner[key]
    strange: list[Any] = [None, True, 0, -1, 258, 2**63, 1.5, "", "a", "<x>", [], [[]], {}]
    inner[key] = seed.choice(strange)
    return json.dumps(whole).encode()


def mutated(seed: random.Random) -> bytes:
    """A tokenizer.json that was valid once: a value of it replaced, or some of its bytes."""
    if seed.random() < 0.5:
        return replaced(seed)
    words = [
        b"null",
        b"true",
        b"1e999",
        b"-1",
        b"[]",
        b"{}",
        b'"a":1,',
        b'"type":"BPE",',
        b'"',
        b"\\ud800",
    ]
    words += [b'"ByteLevel"', b'"WordPiece"', b"65536", b'["l","o"],', b'"content":"",']
    data = bytearray(WHOLE)
    vocab = data.index(b'"vocab"'), data.index(b'"merges"')
    for _ in range(seed.randint(1, 2)):
        at = seed.randrange(len(data))
        if vocab[0] < at < vocab[1] and seed.random() < 0.8:
            at = seed.choice([seed.randrange(vocab[0]), seed.randrange(vocab[1], len(data))])
        match seed.randrange(5):
            case 0:
                data[at] = seed.randrange(256)
            case 1:
                del data[at : at + seed.randint(1, 8)]
            case 2:
                data[at:at] = seed.choice(words)
            case 3:
                data[at:at] = data[at : at + seed.randint(1, 60)]
            case 4:
                at = seed.choice(NUMBERS_AT)
                data[at : at + 1] = seed.choice((b"-", b"9", b"0", b"1.", b'"'))
    return bytes(data)


def read_mutated(data: bytes) -> None:
    """As `tokenizer_in` reads a file: a FormatError, or a tokenizer that says what it was told."""
    value = strict_json.parse(data, "tokenizer.json", "JSON", limit_bytes=1 << 20)
    if type(value) is not dict:
        raise FormatError("tokenizer.json", "JSON", value, "an object", "bad-type")
    model = value.get("model")
    kind = WordPiece if isinstance(model, dict) and model.get("type") == "WordPiece" else ByteBPE
    tokenizer = kind.from_json(value, None, "tokenizer.json")
    with contextlib.suppress(EncodeError):  # a byte's token was renamed
        assert tokenizer.decode(tokenizer.encode("low 12")) in ("low 12", " low 12")


def test_fuzz() -> None:
    draw, refused = random.Random(0), 0
    read_mutated(WHOLE)
    for _ in range(1500):
        try:
            read_mutated(mutated(draw))
        except FormatError:
            refused += 1
    assert 500 < refused < 1500


def put(data: Any, place: str, value: Any) -> None:
    """Replace a field of parsed JSON; `place` is its path, with numbers in lists."""
    *parents, last = place.split(".")
    for parent in parents:
        data = data[int(parent) if isinstance(data, list) else parent]
    data[last] = value


GPT2_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
EVIL = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
MORE_LIES: list[tuple[str, Any, str]] = [
    ("model", [], "bad-type"),
    ("model.type", None, "unknown-field"),
    ("model.type", ["BPE"], "unknown-field"),
    ("model.type", "WordLevel", "unknown-field"),
    ("model.vocab", {}, "out-of-range"),
    ("model.vocab", None, "bad-type"),
    ("model.vocab.a", True, "bad-type"),
    ("model.vocab.a", None, "bad-type"),
    ("model.vocab.a", "5", "bad-type"),
    ("model.vocab.a", [5], "bad-type"),
    ("model.vocab.", 700, "bad-type"),
    ("model.vocab." + "x" * 65_537, 700, "limit"),
    ("model.vocab.new", 2**63, "out-of-range"),
    ("model.merges", None, "bad-type"),
    ("model.merges", "a b", "bad-type"),
    ("model.merges", [3], "bad-type"),
    ("model.merges", [None], "bad-type"),
    ("model.merges", [["a", "b", "c"]], "bad-type"),
    ("model.merges", ["a b c"], "bad-type"),
    ("model.merges", ["a"], "bad-type"),
    ("model.merges", [["a", 3]], "bad-type"),
    ("model.merges", ["<|im_end|> a"], "out-of-range"),
    ("model.merges", [["zz", "q"]] * 50_000, "out-of-range"),
    ("model.ignore_merges", "yes", "bad-type"),
    ("model.continuing_subword_prefix", "##", "unknown-field"),
    ("model.dropout", "0", "unknown-field"),
    ("normalizer", [], "bad-type"),
    ("normalizer", {}, "unknown-field"),
    ("normalizer", {"type": "NFKC"}, "unknown-field"),
    ("normalizer", {"type": "Sequence", "normalizers": []}, "unknown-field"),
    ("normalizer", {"type": "Replace", "pattern": {"Regex": "(a+)+$"}}, "unknown-field"),
    ("decoder", [], "bad-type"),
    ("decoder", {"type": "Sequence", "decoders": []}, "unknown-field"),
    ("pre_tokenizer", [], "unsafe"),
    ("pre_tokenizer", {}, "unsafe"),
    ("pre_tokenizer", EVIL, "unsafe"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [EVIL]}, "unsafe"),
    ("pre_tokenizer", {"type": "Sequence", "pretokenizers": [EVIL] * 5_000}, "unsafe"),
    ("pre_tokenizer", GPT2_SPLIT | {"use_regex": "yes"}, "unsafe"),
    ("pre_tokenizer", GPT2_SPLIT | {"surprise": 1}, "unsafe"),
    ("pre_tokenizer", {"type": "ByteLevel"}, "unsafe"),
    ("pre_tokenizer", {"type": "Digits", "individual_digits": True}, "unsafe"),
    ("post_processor", [], "bad-type"),
    ("post_processor", {}, "unknown-field"),
    ("added_tokens", {}, "bad-type"),
    ("added_tokens", [None], "bad-type"),
    ("added_tokens", [{}], "missing-field"),
    ("added_tokens", [token(content=None)], "bad-type"),
    ("added_tokens", [token(content=3)], "bad-type"),
    ("added_tokens", [token(id="700")], "bad-type"),
    ("added_tokens", [token(id=700.0)], "bad-type"),
    ("added_tokens", [token(id=2**64)], "out-of-range"),
    ("added_tokens", [token(special=1)], "bad-type"),
    ("added_tokens", [token(normalized="no")], "bad-type"),
    ("added_tokens", [token(), token(id=701)], "dup-key"),
    ("added_tokens", [token(), token(content="<y>")], "dup-key"),
    ("added_tokens", [token(id=702)], "out-of-range"),
    ("added_tokens", [token(content="x" * 65_537)], "limit"),
    ("added_tokens", [token(special=False, single_word="no")], "bad-type"),
    ("version", 1.0, "bad-version"),
    ("pre_tokenizer", EVIL | {"behavior": "Removed", "invert": True}, "unsafe"),
    ("added_tokens", [token(id=-i) for i in range(5_000)], "dup-key"),
]
CONFIG_LIES: list[tuple[dict[str, Any], str]] = [
    ({}, "missing-field"),
    ({"eos_token": None}, "missing-field"),
    ({"eos_token": 3}, "out-of-range"),
    ({"eos_token": "<nowhere>"}, "out-of-range"),
    ({"eos_token": ["<|im_end|>"]}, "out-of-range"),
    ({"eos_token": {"content": ["x"]}}, "out-of-range"),
    ({"eos_token": {}}, "out-of-range"),
    (CONFIG | {"pad_token": "<nowhere>"}, "out-of-range"),
    (CONFIG | {"unk_token": True}, "out-of-range"),
    (CONFIG | {"chat_template": 5}, "bad-type"),
    (CONFIG | {"chat_template": {}}, "bad-type"),
    (CONFIG | {"chat_template": []}, "bad-type"),
    (CONFIG | {"chat_template": [{"name": "default", "template": 3}]}, "bad-type"),
    (CONFIG | {"add_bos_token": "yes"}, "bad-type"),
    (CONFIG | {"add_bos_token": 1}, "bad-type"),
    (CONFIG | {"bos_token": None, "add_bos_token": True}, "missing-field"),
]


def hostile() -> dict[str, tuple[Callable[[Path], object], str]]:
    """For tests/hostile.py."""

    def attempt(folder: Path, place: str, value: Any, config: dict[str, Any]) -> None:
        data = copy.deepcopy(GOLDEN["tokenizer"])
        if place:
            put(data, place, value)
        ByteBPE.from_json(data, config, "folder/tokenizer.json")

    cases: dict[str, tuple[Callable[[Path], object], str]] = {}
    lies = [(place, value, code) for place, value, _, code in JSON_LIES]
    for place, value, code in lies + MORE_LIES:
        config = {} if place == "added_tokens" and value == [token()] else CONFIG
        name = f"{place[:40]} {value!r:.40} {len(cases)}"
        cases[name] = partial(attempt, place=place, value=value, config=config), code
    for config, code in CONFIG_LIES:
        name = f"tokenizer_config {config!r:.60} {len(cases)}"
        cases[name] = partial(attempt, place="", value=None, config=config), code
    return cases
