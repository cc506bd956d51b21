"""Byte-level BPE: by hand, against the tokenizers library, by properties, and hostile files."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minift.errors import EncodeError, FormatError
from minift.tokenizers import vocabulary, words
from minift.tokenizers.byte_bpe import ALPHABET, ByteBPE

GOLDEN = json.loads(Path(__file__).parents[1].joinpath("golden/tokens.json").read_text())
CONFIG = {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>", "pad_token": None}
PATTERNS = sorted(GOLDEN["small"])


def small(pattern: str = "gpt2", **changes: Any) -> ByteBPE:
    """The golden's small vocabulary, cut by `pattern`; `changes` are fields of tokenizer.json."""
    data = copy.deepcopy(GOLDEN["tokenizer"]) | GOLDEN["small"][pattern]["tokenizer"]
    data["model"]["ignore_merges"] = pattern == "llama3"
    return ByteBPE.from_json(data | changes, CONFIG, "tokenizer.json")


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


def test_merges_by_hand() -> None:
    """Ranks: (l o) first, (lo w) second, (Ġ low) third; then (a b) before (b c).

    "low" -> lo w -> low. " low" -> Ġ lo w -> Ġ low -> Ġlow. "abc" -> ab c, though bc is a token.
    "aaaa" with (a a) -> aa aa, leftmost first; "aaa" -> aa a.
    """
    words = "lo low Ġlow ab bc aa"
    tokenizer = ByteBPE.from_gguf(metadata(words, "l o,lo w,Ġ low,a b,b c,a a"), "x.gguf")
    lo, low, spaced, ab, bc, aa = range(257, 263)
    a, c = 1 + ord("a"), 1 + ord("c")
    assert tokenizer.encode("low low") == [low, spaced]
    assert tokenizer.encode("lo") == [lo]
    assert tokenizer.encode("abc") == [ab, c]
    assert tokenizer.encode("bc") == [bc]
    assert tokenizer.encode("aaaa") == [aa, aa]
    assert tokenizer.encode("aaa") == [aa, a]


def test_a_merge_that_becomes_possible_can_come_before_older_ones() -> None:
    """Rank 0 is (ab a), rank 1 is (a b). "abab": a b -> ab a b -> aba b, not ab ab."""
    tokenizer = ByteBPE.from_gguf(metadata("aba ab", "ab a,a b"), "x.gguf")
    assert tokenizer.encode("abab") == [257, 1 + ord("b")]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_ids_are_those_of_the_tokenizers_library(pattern: str) -> None:
    tokenizer = small(pattern)
    for text, ids in zip(GOLDEN["texts"], GOLDEN["small"][pattern]["ids"], strict=True):
        assert tokenizer.encode(text) == ids, ascii(text)
        assert tokenizer.encode(text) == ids, ascii(text)  # now from the cache


def test_bytes_that_are_no_text_decode_as_in_the_library() -> None:
    tokenizer = small()
    for row in GOLDEN["decode"]:
        assert tokenizer.decode(row["ids"], skip_special=False) == row["text"]


@pytest.mark.parametrize("pattern", ["gpt2", "smollm", "llama3"])
def test_decode_undoes_encode(pattern: str) -> None:
    tokenizer, draw = small(pattern), random.Random(3)
    for _ in range(300):
        codes = [draw.choice((0x7F, 0x800, 0x10000, 0x110000)) for _ in range(draw.randint(0, 30))]
        picked = [draw.randrange(most) for most in codes]
        text = "".join(chr(c) for c in picked if not 0xD800 <= c < 0xE000)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
        assert not set(ids) & set(tokenizer.special.values())


def test_a_normalized_vocabulary_decodes_to_the_normalized_text() -> None:
    tokenizer = small("qwen2")
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "é"


def test_a_full_cache_and_long_words_change_no_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "CACHED_WORDS", 3)
    monkeypatch.setattr(words, "LONGEST_CACHED", 4)
    tokenizer = small()
    for text, ids in zip(GOLDEN["texts"], GOLDEN["small"]["gpt2"]["ids"], strict=True):
        assert tokenizer.encode(text) == ids
        assert len(tokenizer._words) <= 3


def test_names_of_special_tokens_are_plain_text() -> None:
    tokenizer = small()
    assert tokenizer.special["<|im_end|>"] == tokenizer.eos == 2
    ids = tokenizer.encode("<|im_end|>")
    assert len(ids) > 1
    assert 2 not in ids
    assert tokenizer.decode([*ids, 2]) == "<|im_end|>"
    assert tokenizer.decode([*ids, 2], skip_special=False) == "<|im_end|><|im_end|>"
    assert tokenizer.token_bytes(2) == b"<|im_end|>"


def test_ordinary_added_tokens_are_found_in_texts_longest_first() -> None:
    added = [{"id": 700, "content": "<x>", "special": False}]
    added += [{"id": 701, "content": "<x><x>", "special": False}]
    tokenizer = small(added_tokens=GOLDEN["tokenizer"]["added_tokens"] + added)
    a = tokenizer.encode("a")
    assert tokenizer.encode("a<x>a<x><x><x>") == [*a, 700, *a, 701, 700]
    assert tokenizer.decode([700]) == "<x>"


def test_a_missing_byte_loads_and_is_named_when_it_is_needed() -> None:
    data = metadata()
    data["tokenizer.ggml.tokens"][1 + 0x04] = "unused"
    data["tokenizer.ggml.tokens"][1 + 0xC3] = "unused too"
    tokenizer = ByteBPE.from_gguf(data, "x.gguf")
    assert tokenizer.encode("a b") == [1 + ord(c) for c in "a b"]
    with pytest.raises(EncodeError, match=r"byte 04 \(of U\+0004\)"):
        tokenizer.encode("a\x04b")
    with pytest.raises(EncodeError, match=r"byte C3 \(of U\+00E9\)"):
        tokenizer.encode("café")


def test_a_byte_that_a_file_calls_special_is_still_text() -> None:
    data = metadata()
    data["tokenizer.ggml.token_type"][1 + ord("!")] = 3
    tokenizer = ByteBPE.from_gguf(data, "x.gguf")
    assert tokenizer.encode("!") == [1 + ord("!")]
    assert tokenizer.decode([1 + ord("!")]) == "!"
    assert tokenizer.special == {"<eos>": 0}


def test_half_a_surrogate_pair_and_ids_out_of_range() -> None:
    tokenizer = small()
    with pytest.raises(EncodeError, match=r"U\+D83D, half of a surrogate pair"):
        tokenizer.encode("a \ud83d b")
    for wrong in (-1, 700):
        with pytest.raises(EncodeError, match=f"token id {wrong}, allowed 0 to 699"):
            tokenizer.decode([wrong])
        with pytest.raises(EncodeError):
            tokenizer.token_bytes(wrong)


def test_a_long_word_takes_no_quadratic_time() -> None:
    tokenizer = small()
    text = "light" * 20_000
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.fixture(scope="module")
def smollm2(asset: Callable[[str], Path]) -> ByteBPE:
    from minift.formats import gguf

    path = asset("smollm2-135m-instruct")
    return ByteBPE.from_gguf(gguf.read(path).metadata, str(path))


@pytest.mark.assets
def test_smollm2_ids(smollm2: ByteBPE) -> None:
    golden = GOLDEN["smollm2"]
    for n, ids in zip(golden["texts"], golden["ids"], strict=True):
        assert smollm2.encode(GOLDEN["texts"][n]) == ids, ascii(GOLDEN["texts"][n])
    assert (smollm2.vocab_size, smollm2.bos, smollm2.eos, smollm2.pad) == (49152, 1, 2, 2)
    assert len(smollm2.special) == 17


@pytest.mark.assets
def test_smollm2_lacks_eight_bytes(smollm2: ByteBPE) -> None:
    never = {0xC0, 0xC1, *range(0xF5, 0x100)}  # in no UTF-8 text, and not in the vocabulary
    lacking = {byte for byte, i in enumerate(smollm2._byte_ids) if i < 0} - never
    assert lacking == {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}
    assert lacking == set(GOLDEN["smollm2"]["missing"])
    with pytest.raises(EncodeError, match="byte 1D"):
        smollm2.encode("\x1d")


@pytest.mark.assets
def test_smollm2_chat(smollm2: ByteBPE) -> None:
    golden = GOLDEN["smollm2"]["chat"]
    assert smollm2.template == golden["template"]
    for row in golden["rows"]:
        assert smollm2.chat(row["messages"], row["reply"])[0] == row["ids"]


def test_a_vocabulary_at_its_limits_and_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "x" * vocabulary.LONGEST_TOKEN
    assert ByteBPE.from_gguf(metadata(longest), "x.gguf").vocab_size == 258
    with pytest.raises(FormatError) as caught:
        ByteBPE.from_gguf(metadata(longest + "x"), "x.gguf")
    assert caught.value.code == "limit"
    monkeypatch.setattr(vocabulary, "MOST_TOKENS", 258)
    assert ByteBPE.from_gguf(metadata("lo"), "x.gguf").vocab_size == 258
    with pytest.raises(FormatError) as caught:
        ByteBPE.from_gguf(metadata("lo low"), "x.gguf")
    assert caught.value.code == "limit"
