"""Models as GGUF files: the words and the order of the format, and nothing lost on the way."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import minift.checkpoints.open
from minift.checkpoints.gguf_model import check, facts, linears, weights, write
from minift.checkpoints.open import load, load_model
from minift.errors import ConfigError, FormatError
from minift.formats import gguf, gguf_write
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.tokenizers.byte_bpe import ALPHABET
from minift.tokenizers.sentencepiece import SentencePiece
from minift.tokenizers.wordpiece import WordPiece

GOLDEN = Path(__file__).parents[1] / "golden"


def small(tokenizer, *, dim=64, spare=0, tied=False) -> Transformer:
    """A random Llama of two layers, with `spare` embedding rows that no token has."""
    config = ModelConfig(
        family="llama", vocab=tokenizer.vocab_size + spare, dim=dim, layers=2, heads=4, kv_heads=2,
        head_dim=8, ff=96, context=128, tied=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config, "models/small")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_float32_comes_back_bit_for_bit(tiny_tokenizer, tied, tmp_path):
    model = small(tiny_tokenizer, tied=tied, spare=4)
    write(model, tiny_tokenizer, tmp_path / "a.gguf", "F32")
    again, tokenizer = load(tmp_path / "a.gguf")
    stored = float(np.float32(model.config.norm_eps))  # the format has no wider number for it
    assert again.config == replace(model.config, norm_eps=stored)
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    text = "Naïve café, 12,345 🙂 <|im_end|>"
    assert tokenizer.encode(text) == tiny_tokenizer.encode(text)
    assert (tokenizer.eos, tokenizer.bos) == (tiny_tokenizer.eos, tiny_tokenizer.bos)
    assert tokenizer.special == tiny_tokenizer.special


@pytest.mark.parametrize(("kind", "matrix", "embedding"), [
    ("F32", "F32", "F32"),
    ("F16", "F16", "F16"),
    ("BF16", "BF16", "BF16"),
    ("Q8_0", "Q8_0", "Q8_0"),
    ("Q4_0", "Q4_0", "Q8_0"),
    ("Q4_1", "Q4_1", "Q8_0"),
])  # fmt: skip
def test_kinds(tiny_tokenizer, kind, matrix, embedding, tmp_path):
    write(small(tiny_tokenizer), tiny_tokenizer, tmp_path / "a.gguf", kind)
    file = gguf.read(tmp_path / "a.gguf")
    for name, entry in file.tensors.items():
        wanted = embedding if name in ("token_embd.weight", "output.weight") else matrix
        assert entry.kind == ("F32" if "norm" in name else wanted)
    numbers = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}
    assert file.metadata["general.file_type"] == numbers[kind]
    assert load(tmp_path / "a.gguf")[0].config.vocab == tiny_tokenizer.vocab_size


def test_rows_that_do_not_fill_blocks_are_float16(tiny_tokenizer, tmp_path):
    write(small(tiny_tokenizer, dim=24), tiny_tokenizer, tmp_path / "a.gguf", "Q4_0")
    kinds = {name: entry.kind for name, entry in gguf.read(tmp_path / "a.gguf").tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q4_0"  # rows of 96


def test_what_the_file_says(tiny_tokenizer, tmp_path):
    write(small(tiny_tokenizer, spare=1), tiny_tokenizer, tmp_path / "a.gguf", "F16")
    found = gguf.read(tmp_path / "a.gguf").metadata
    plain = {k: v for k, v in found.items() if not k.startswith("tokenizer.")}
    assert plain == {
        "general.type": "model",
        "general.name": "small",
        "general.architecture": "llama",
        "llama.vocab_size": 701,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 8,
        "llama.attention.value_length": 8,
        "llama.feed_forward_length": 96,
        "llama.context_length": 128,
        "llama.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama.rope.freq_base": 10_000.0,
        "llama.rope.dimension_count": 8,
        "general.file_type": 1,
        "general.quantization_version": 2,
        "minift.writer": "minift",
    }
    assert len(found["tokenizer.ggml.tokens"]) == 701
    assert found["tokenizer.ggml.model"] == "gpt2"


def test_rows_of_q_and_k_by_hand(tiny_tokenizer):
    """Heads of 8: channel pairs (0, 4), (1, 5) ... stand side by side in the file."""
    model = small(tiny_tokenizer)
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    rows = [8 * head + channel for head in range(4) for channel in order]
    tensors = weights(model)
    assert torch.equal(tensors["blk.1.attn_q.weight"], model.blocks[1].attn.qkv.q.weight[rows])
    assert torch.equal(tensors["blk.1.attn_k.weight"], model.blocks[1].attn.qkv.k.weight[rows[:16]])
    assert torch.equal(tensors["blk.1.attn_v.weight"], model.blocks[1].attn.qkv.v.weight)
    place = linears(model.config)["blocks.1.attn.qkv.k"]
    assert place.name == "blk.1.attn_k.weight"
    column = torch.arange(16)[:, None]
    assert place.to_file(column)[:, 0].tolist() == rows[:16]
    assert torch.equal(place.from_file(place.to_file(column)), column)


def test_a_sentencepiece_vocabulary(tiny_pieces, tmp_path):
    pieces = SentencePiece.from_model(tiny_pieces, {"legacy": False}, "tokenizer.model")
    write(small(pieces, spare=2), pieces, tmp_path / "a.gguf", "F16")
    found = gguf.read(tmp_path / "a.gguf").metadata
    assert found["tokenizer.ggml.model"] == "llama"
    assert len(found["tokenizer.ggml.scores"]) == found["llama.vocab_size"] == 352
    _, tokenizer = load(tmp_path / "a.gguf")
    for text in ("The keeper  lights", "café 🙂 <s>"):
        assert tokenizer.encode(text) == pieces.encode(text)
        assert tokenizer.encode(text, after=2) == pieces.encode(text, after=2)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_vocabulary_of_words_is_refused(tiny_tokenizer, tmp_path):
    words = WordPiece.from_vocab("[PAD]\n[UNK]\n[CLS]\n[SEP]\n", None, "vocab.txt")
    with pytest.raises(ConfigError, match="only byte-level BPE and sentencepiece"):
        write(small(tiny_tokenizer), words, tmp_path / "a.gguf", "F32")
    assert not list(tmp_path.iterdir())


def test_the_same_model_gives_the_same_bytes(tiny_tokenizer, tmp_path):
    for name in ("a", "b"):
        write(small(tiny_tokenizer), tiny_tokenizer, tmp_path / name, "Q4_1")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_what_stands_there_is_kept_unless_told(tiny_tokenizer, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="minift did not write it; choose another"):
            write(small(tiny_tokenizer), tiny_tokenizer, path, "F32", overwrite=overwrite)
    assert path.read_text() == "mine"
    path.unlink()
    write(small(tiny_tokenizer), tiny_tokenizer, path, "F32")
    wide = path.stat().st_size
    with pytest.raises(ConfigError, match="exists; choose another, or --overwrite"):
        write(small(tiny_tokenizer), tiny_tokenizer, path, "F16")
    assert path.stat().st_size == wide
    write(small(tiny_tokenizer), tiny_tokenizer, path, "F16", overwrite=True)
    assert path.stat().st_size < wide


def test_a_file_that_comes_while_ours_is_written_is_kept(tiny_tokenizer, tmp_path):
    path = tmp_path / "a.gguf"
    with pytest.raises(ConfigError, match="minift did not write it"):
        write(small(tiny_tokenizer), tiny_tokenizer, path, "F32", overwrite=True,
              then=lambda written: path.write_text("mine"))  # fmt: skip
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("families/bert", "language models of some families"),
        ("families/gpt2_labels", "language models of some families"),
        ("families/gemma2_odd", "attention scale"),
        ("families/mistral", "cannot say the window, local"),
        ("families/gpt_neox_serial", "has no blocks"),
        ("families/llama_dynamic", "dynamic"),
    ],
)
def test_what_the_format_cannot_say_is_refused(name, match):
    model = load_model(GOLDEN / name)
    with pytest.raises(ConfigError, match=match):
        check(model.config, facts(model.config), weights(model))


@pytest.mark.parametrize(
    "name",
    [
        *("llama_biased", "families/llama_yarn", "families/mistral_odd", "families/qwen2"),
        *("families/qwen3", "families/gemma", "families/gpt2", "families/gpt_neox"),
    ],
)
def test_other_families_can_be_said(name):
    model = load_model(GOLDEN / name)
    check(model.config, facts(model.config), weights(model))


def test_an_unknown_kind_is_refused(tiny_tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r'dtype: found "Q6_K"'):
        write(small(tiny_tokenizer), tiny_tokenizer, tmp_path / "a.gguf", "Q6_K")
    assert not list(tmp_path.iterdir())


@pytest.mark.assets
def test_the_real_checkpoint_survives_its_own_kind(asset, tmp_path):
    """SmolLM2 came as Q4_1 with a Q8_0 embedding: written so again, no weight changes."""
    model, tokenizer = load(asset("smollm2-135m-instruct"))
    write(model, tokenizer, tmp_path / "a.gguf", "Q4_1")
    again, other = load(tmp_path / "a.gguf")
    for one, two in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, two)
    assert other.vocab == tokenizer.vocab
    assert again.config == model.config


def facts_of_llama() -> dict[str, object]:
    """The metadata of a Llama of one layer whose tokens are the bytes and one pair."""
    sizes = {"embedding_length": 8, "block_count": 1, "feed_forward_length": 16}
    sizes |= {"attention.head_count": 2, "attention.head_count_kv": 2, "context_length": 32}
    of_model = sizes | {"attention.layer_norm_rms_epsilon": 1e-5}
    of_tokens = {"model": "gpt2", "pre": "gpt-2", "tokens": ["<eos>", *ALPHABET, "ab"]}
    of_tokens |= {"token_type": [3] + [1] * 257, "merges": ["a b"], "eos_token_id": 0}
    return {
        "general.architecture": "llama",
        **{f"llama.{key}": value for key, value in of_model.items()},
        **{f"tokenizer.ggml.{key}": value for key, value in of_tokens.items()},
    }


def tensors_of_llama() -> dict[str, torch.Tensor]:
    square = ("attn_q", "attn_k", "attn_v", "attn_output")
    shapes = {f"blk.0.{name}.weight": (8, 8) for name in square}
    shapes |= {"blk.0.ffn_gate.weight": (16, 8), "blk.0.ffn_up.weight": (16, 8)}
    shapes |= {"blk.0.ffn_down.weight": (8, 16), "token_embd.weight": (258, 8)}
    shapes |= {f"{name}.weight": (8,) for name in ("blk.0.attn_norm", "blk.0.ffn_norm")}
    shapes["output_norm.weight"] = (8,)
    return {name: torch.ones(shape) for name, shape in shapes.items()}


def test_divisors_at_the_limit_and_over_it(tmp_path, monkeypatch):
    tensors = tensors_of_llama() | {"rope_freqs.weight": torch.ones(2)}
    kinds = dict.fromkeys(tensors, "F32")
    gguf_write.write(tmp_path / "m.gguf", facts_of_llama(), tensors, kinds)
    monkeypatch.setattr(minift.checkpoints.open, "FACTORS_LIMIT", 2)
    assert load_model(tmp_path / "m.gguf").config.rope_scaling.factors == (1.0, 1.0)
    monkeypatch.setattr(minift.checkpoints.open, "FACTORS_LIMIT", 1)
    with pytest.raises(FormatError) as caught:
        load_model(tmp_path / "m.gguf")
    assert caught.value.code == "limit"


def hostile():
    """For tests/hostile.py: whole files, their header sound, what it says not."""

    def attempt(folder, metadata, tensors):
        facts, found = facts_of_llama(), tensors_of_llama()
        for target, changes in ((facts, metadata), (found, tensors)):
            for key, value in changes.items():
                target[key] = value
                if value is None:
                    del target[key]
        gguf_write.write(folder / "m.gguf", facts, found, dict.fromkeys(found, "F32"))
        load(folder / "m.gguf")

    arch, rms = "general.architecture", "llama.attention.layer_norm_rms_epsilon"
    heads, kv = "llama.attention.head_count", "llama.attention.head_count_kv"
    width, layers = "llama.embedding_length", "llama.block_count"
    said = [  # metadata, or None to leave it out, and the code
        ({arch: None}, "out-of-range"), ({arch: "mamba"}, "out-of-range"),
        ({arch: 3}, "out-of-range"), ({arch: ["llama"]}, "out-of-range"),
        ({arch: "Llama"}, "out-of-range"), ({arch: "qwen2"}, "bad-type"),
        *(({f"llama.{key}": None}, "bad-type") for key in (
            "embedding_length", "block_count", "feed_forward_length", "context_length",
        )),
        ({heads: None}, "bad-type"), ({rms: None}, "bad-type"),
        ({width: 8.0}, "bad-type"), ({width: "8"}, "bad-type"),
        ({width: True}, "bad-type"), ({width: [8]}, "bad-type"),
        ({width: 0}, "out-of-range"), ({width: 9}, "shape-mismatch"),
        ({width: 16}, "shape-mismatch"),
        ({layers: 0}, "out-of-range"), ({layers: -1}, "out-of-range"),
        ({layers: 10**9}, "shape-mismatch"), ({layers: 2}, "shape-mismatch"),
        ({heads: 0}, "out-of-range"), ({heads: 3}, "out-of-range"), ({kv: 3}, "out-of-range"),
        ({heads: [2]}, "bad-type"), ({kv: [2]}, "bad-type"), ({kv: 1}, "shape-mismatch"),
        ({"llama.feed_forward_length": 2**32 - 1}, "out-of-range"),
        ({"llama.feed_forward_length": 2**31}, "shape-mismatch"),
        ({"llama.context_length": 0}, "out-of-range"),
        ({rms: 0.0}, "out-of-range"), ({rms: float("nan")}, "out-of-range"),
        ({rms: float("inf")}, "out-of-range"), ({rms: 2.0}, "out-of-range"),
        ({rms: "1e-5"}, "bad-type"),
        ({"llama.rope.freq_base": 0.0}, "out-of-range"),
        ({"llama.rope.freq_base": float("nan")}, "out-of-range"),
        ({"llama.rope.freq_base": "1e4"}, "bad-type"),
        ({"llama.rope.dimension_count": 2}, "out-of-range"),
        ({"llama.rope.dimension_count": "4"}, "out-of-range"),
        ({"llama.rope.scaling.type": "magic"}, "out-of-range"),
        ({"llama.rope.scaling.type": ["yarn"]}, "out-of-range"),
        ({"llama.rope.scaling.factor": "2"}, "bad-type"),
        ({"llama.attention.causal": False}, "out-of-range"),
        ({"llama.attention.value_length": 7}, "out-of-range"),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": -1.0}, "out-of-range"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": "2"}, "bad-type"),
        ({"llama.attention.key_length": 3}, "out-of-range"),
        ({"llama.attention.key_length": 6}, "shape-mismatch"),
        ({"llama.attention.sliding_window": 16}, "out-of-range"),
        ({"llama.expert_count": 8}, "out-of-range"),
        ({"llama.vocab_size": 256}, "shape-mismatch"), ({"llama.vocab_size": "257"}, "bad-type"),
        ({"llama.vocab_size": 2**31, "llama.embedding_length": 2**31}, "out-of-range"),
        ({"tokenizer.ggml.model": "bert"}, "unknown-field"),
        ({"tokenizer.ggml.model": "t5"}, "unknown-field"),
        ({"tokenizer.ggml.pre": "(a+)+$"}, "unknown-field"),
        ({"tokenizer.ggml.merges": ["a zz"]}, "out-of-range"),
        ({"tokenizer.ggml.tokens": ["a"]}, "shape-mismatch"),
        ({"tokenizer.ggml.eos_token_id": 258}, "out-of-range"),
    ]  # fmt: skip
    cases = {
        f"{' '.join(facts)} {list(facts.values())!r}"[:100]: (
            partial(attempt, metadata=facts, tensors={}), code,
        )
        for facts, code in said
    }  # fmt: skip
    held = {
        "a tensor that is missing": ({"output_norm.weight": None}, "shape-mismatch"),
        "a tensor too many": ({"blk.0.extra": torch.ones(1)}, "shape-mismatch"),
        "a layer too many": ({"blk.1.attn_q.weight": torch.ones(8, 8)}, "shape-mismatch"),
        "a matrix turned": ({"blk.0.ffn_up.weight": torch.ones(8, 16)}, "shape-mismatch"),
        "a vector as a matrix": ({"output_norm.weight": torch.ones(1, 8)}, "shape-mismatch"),
        "an embedding smaller than the vocabulary": (
            {"token_embd.weight": torch.ones(256, 8)}, "shape-mismatch",
        ),
        "divisors for another width": ({"rope_freqs.weight": torch.ones(3)}, "out-of-range"),
        "divisors of nothing": ({"rope_freqs.weight": torch.ones(0)}, "out-of-range"),
        "divisors of 0": ({"rope_freqs.weight": torch.zeros(2)}, "out-of-range"),
        "divisors below 0": ({"rope_freqs.weight": -torch.ones(2)}, "out-of-range"),
        "5,000 divisors": ({"rope_freqs.weight": torch.ones(5000)}, "limit"),
    }  # fmt: skip
    return cases | {
        name: (partial(attempt, metadata={}, tensors=tensors), code)
        for name, (tensors, code) in held.items()
    }
