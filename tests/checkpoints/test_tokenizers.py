"""The tokenizer that a folder holds, by its files."""

from __future__ import annotations

import base64
import json
import os
import time
from functools import partial
from pathlib import Path

import pytest
import sentencepiece
import torch

from minift.checkpoints.open import load, survey
from minift.checkpoints.save import folder_files, save
from minift.checkpoints.tokenizers import template_name, text_in, tokenizer_in, tokenizer_of
from minift.errors import FormatError
from minift.generation.decode import generate
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.storage import write_folder
from minift.tokenizers.byte_bpe import ALPHABET, ByteBPE
from minift.tokenizers.chat import TEMPLATES
from minift.tokenizers.sentencepiece import SentencePiece
from minift.tokenizers.wordpiece import WordPiece

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_PIECES = json.loads((GOLDEN / "pieces.json").read_text())["models"]
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


TEXTS = [
    "The keeper lights the lamp.",
    "  two  spaces",
    "caf\u00e9 \U0001f600 \u706f",
    "<s>[INST]",
    "a\n\tb",
]


def pieces_in(folder, files):
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return tokenizer_in(folder)


def test_pieces_in_every_form_of_a_folder(tmp_path, tiny_pieces):
    library = sentencepiece.SentencePieceProcessor(model_proto=tiny_pieces)
    alone = pieces_in(tmp_path, {"tokenizer.model": tiny_pieces})
    both = pieces_in(tmp_path, alone.files())
    assert {path.name for path in tmp_path.iterdir()} == set(alone.files())
    (tmp_path / "tokenizer.model").unlink()
    from_json = tokenizer_in(tmp_path)
    for tokenizer in (alone, both, from_json):
        assert isinstance(tokenizer, SentencePiece)
        assert [tokenizer.encode(text) for text in TEXTS] == library.encode(TEXTS)
        assert tokenizer.wrap([7], [8]) == ([1, 7, 1, 8], [0, 0, 1, 1])
        assert (tokenizer.bos, tokenizer.eos, tokenizer.vocab_size) == (1, 2, 350)


def test_tokens_that_only_tokenizer_json_adds(tmp_path, tiny_pieces):
    """As newer libraries save a folder: the pieces as they were, the rest in tokenizer.json."""
    files = pieces_in(tmp_path, {"tokenizer.model": tiny_pieces}).files()
    data = json.loads(files["tokenizer.json"])
    data["added_tokens"] += [{"id": 350, "content": "<|user|>", "special": True}]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|user|>"}')
    tokenizer = tokenizer_in(tmp_path)
    assert tokenizer.special["<|user|>"] == tokenizer.eos == 350
    (tmp_path / "tokenizer.model").unlink()
    assert tokenizer_in(tmp_path).files()["tokenizer.json"] == tokenizer.files()["tokenizer.json"]


def test_unigram_pieces_need_their_own_file(tmp_path, tiny_pieces):
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": []}}')
    with pytest.raises(FormatError, match="found Unigram, allowed one of BPE, WordPiece"):
        tokenizer_in(tmp_path)
    assert isinstance(pieces_in(tmp_path, {"tokenizer.model": tiny_pieces}), SentencePiece)


def test_a_model_file_beside_another_vocabulary_is_not_read(tmp_path, tiny_tokenizer):
    """Llama 3's folder has a tokenizer.model of another kind."""
    tokenizer = pieces_in(tmp_path, tiny_tokenizer.files() | {"tokenizer.model": b"IQ== 0\n"})
    assert isinstance(tokenizer, ByteBPE)


def test_old_files_that_do_not_say_their_type(tmp_path, tiny_tokenizer):
    for data, kind in (
        (WORDS, WordPiece), (json.loads(tiny_tokenizer.files()["tokenizer.json"]), ByteBPE),
    ):  # fmt: skip
        model = {key: value for key, value in data["model"].items() if key != "type"}
        (tmp_path / "tokenizer.json").write_text(json.dumps(data | {"model": model}))
        (tmp_path / "tokenizer_config.json").write_text(
            tiny_tokenizer.files()["tokenizer_config.json"].decode() if kind is ByteBPE else "{}"
        )
        assert isinstance(tokenizer_in(tmp_path), kind)


def test_a_chat_template_in_a_file_of_its_own(tmp_path, tiny_tokenizer):
    pieces_in(tmp_path, tiny_tokenizer.files())
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["zephyr"].jinja)
    assert template_name(tokenizer_in(tmp_path)) == "zephyr"
    for text, name in [
        ("{% for m in messages %}<{{ m.content }}>{% endfor %}", "the model's own template"),
        ("{{ raise_exception('a\\x1b[2J') }}", "a template that minift does not read (a\\x1b[2J): "
         "needs --chat-template"),
        ("Hi", "a template that minift does not read (it leaves out a user's message): "
         "needs --chat-template"),
    ]:  # fmt: skip
        (tmp_path / "chat_template.jinja").write_text(text)
        assert template_name(tokenizer_in(tmp_path)) == name


def test_metadata_says_which(tiny_tokenizer):
    assert isinstance(tokenizer_of(tiny_tokenizer.gguf(700), "x.gguf"), ByteBPE)
    with pytest.raises(FormatError, match="one of gpt2, llama"):
        tokenizer_of({"tokenizer.ggml.model": "t5"}, "x.gguf")
    with pytest.raises(FormatError, match="found nothing"):
        tokenizer_of({}, "x.gguf")


def model_of(vocab):
    """A random Llama of two layers."""
    config = ModelConfig(
        family="llama", vocab=vocab, dim=16, layers=2, heads=4, kv_heads=2, head_dim=4, ff=32,
        context=128, tied=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.1)
    return model


def test_a_checkpoint_with_pieces_is_loaded_run_saved_and_loaded(tmp_path, tiny_pieces):
    files = folder_files(model_of(350), {"eos_token_id": 2, "bos_token_id": 1})
    write_folder(tmp_path / "first", files | {"tokenizer.model": tiny_pieces})
    model, tokenizer = load(tmp_path / "first")
    tokenizer.chat_template = "zephyr"
    save(model, tokenizer, tmp_path / "second")
    again, loaded = load(tmp_path / "second")
    assert (tmp_path / "second" / "tokenizer.model").read_bytes() == tiny_pieces
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    chat = [{"role": "user", "content": "What is the light?"}]
    assert loaded.chat(chat, reply=True) == tokenizer.chat(chat, reply=True)
    prompts = [TEXTS[0], tokenizer.chat(chat, reply=True)[0]]
    said = generate(model, tokenizer, prompts, max_new_tokens=12, temperature=0.0)
    assert generate(again, loaded, prompts, max_new_tokens=12, temperature=0.0) == said
    assert all(said)
    assert survey(tmp_path / "second").tokenizer == "sentencepiece, 350 tokens"
    assert survey(tmp_path / "second").chat == "zephyr"


HOSTILE = {
    "tokenizer.model": [
        b"",
        b"\n",
        b"\x0a" * 10**6,
        b"\x0a\xff\xff\xff\xff\x0f",
        b"\n\x00" * 10**5,
    ],
    "tokenizer.json": [
        b"[]",
        b"{}",
        b'{"model": 5}',
        b'{"model": {"type": []}}',
        b'{"model": {"type": "BPE", "byte_fallback": true}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 99999999999}, "merges": []}, "decoder": {}}',
        b'{"model": {"type": "WordPiece", "vocab": {"a": -1}}}',
        b'{"model": ' + b"[" * 500_000,
    ],
    "vocab.txt": [b"\n" * 10**6, b"a" * 10**6, b"a\n" * 10**5],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_at_once(tmp_path, name):
    for raw in HOSTILE[name]:
        (tmp_path / name).write_bytes(raw)
        begin = time.process_time()
        with pytest.raises(FormatError) as caught:
            tokenizer_in(tmp_path)
        assert time.process_time() - begin < 1, raw[:60]
        assert "\n" not in str(caught.value)


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
        "a hole of 17 MiB": (hole(17 << 20), "too-large"),
        "a megabyte of a token": (b'{"eos_token":"' + b"x" * (1 << 20) + b'"}', "limit"),
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
        "half a million lines": (b"a\n" * 500_000, "missing-field"),
        "a megabyte of one token": (list_of + b"\n" + b"x" * (1 << 20), "limit"),
        "a hole of 1 TiB": (hole(1 << 40), "too-large"), "zeros": (bytes(1 << 20), "missing-field"),
        "a folder": (lambda path: path.mkdir(), "bad-path"), "a pipe": (os.mkfifo, "bad-path"),
    }  # fmt: skip
    for name, (content, code) in lists.items():
        cases[f"vocab.txt: {name}"] = {"vocab.txt": content}, code
    sound_pieces = base64.b64decode(GOLDEN_PIECES["plain"])
    models = {
        "nothing": (b"", "missing-field"), "a text": (b"hello there", "unknown-field"),
        "half a model": (sound_pieces[: len(sound_pieces) // 2], "truncated"),
        "zeros": (bytes(1 << 20), "unknown-field"), "a hole of 1 TiB": (hole(1 << 40), "too-large"),
        "a hole of 65 MiB": (hole((64 << 20) + 1), "too-large"),
        "a folder": (lambda path: path.mkdir(), "bad-path"), "a pipe": (os.mkfifo, "bad-path"),
        "a link to itself": (link("tokenizer.model"), "bad-path"),
        "a safetensors file": (bytes([64]) + bytes(7) + b"{}" * 32, "unknown-field"),
    }  # fmt: skip
    for name, (content, code) in models.items():
        cases[f"tokenizer.model: {name}"] = {"tokenizer.model": content}, code
    cases["no file at all"] = {}, "bad-path"
    cases["a dead link"] = {"tokenizer.json": link("nowhere")}, "bad-path"
    return {name: (partial(attempt, files=files), code) for name, (files, code) in cases.items()}


def test_the_models_family_decides_where_config_json_names_none(tmp_path):
    ids = {text: i for i, text in enumerate(["<s>", "<pad>", "</s>", "<unk>", *ALPHABET, "<mask>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": len(ids)}))
    tokenizer = tokenizer_in(tmp_path, "roberta")
    assert tokenizer.wrap([9], [8])[0] == [0, 9, 2, 2, 8, 2]
