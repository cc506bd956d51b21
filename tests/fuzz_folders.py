"""Mutated adapters, run folders, data files, configurations and GGUF tokenizers.

Each kind has a `make`, which draws what a folder or a file holds, and a `read`, which puts it in
place and goes through the door that a command goes through. fuzz_formats.py runs them by the ten
thousand, test_fuzz_folders.py a few hundred of each.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hostile import tests_of

from minift.checkpoints.config_json import config_from_json
from minift.checkpoints.open import load_model
from minift.checkpoints.tokenizers import tokenizer_of
from minift.cli.console import Console
from minift.cli.info import adapter_info
from minift.cli.run_file import base_in, dtype_in
from minift.data.read import open_records
from minift.errors import FormatError, Notice
from minift.formats import safetensors
from minift.interop.adapter_files import CONFIG, TENSORS, load_adapter
from minift.model.transformer import Transformer
from minift.peft.adapters import active, detach, names
from minift.tokenizers.text_format import FILE

GOLDEN = Path(__file__).parent / "golden"
ADAPTERS = [*("lora_qv", "lora_all", "lora_rs", "lora_pattern")]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 8, 1000, 2**31, 2**63, 2**64, -(2**63), 10**19, 0.0, 0.5,
    -1.5, 1e-300, 1e308, "", "a", "LORA", "lora", "IA3", "all-linear", "all", "none", "q_proj",
    ".*", "(a+)+$", "(" * 50, "[", "a\x00b", "../..", "/etc/passwd", "\x1b[2J", "x" * 5000,
    [], [[]], [None], ["q_proj"], ["q_proj", 3], list(range(50)), {}, {"a": {}}, {"": 0},
    {"q_proj": 2**40}, {"type": "linear", "factor": 1e9}, [0.5] * 40,
]  # fmt: skip
BYTES = [
    b"", b"\0", b"\xff", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\ud800", b"9" * 30,
    b"NaN", b"1e999", b"\n", b"\r", b"\n\n\n", b"\xef\xbb\xbf", b"\xe2\x80\xa8",
]  # fmt: skip


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside parsed JSON."""
    found, todo = [], [value]
    while todo:
        one = todo.pop()
        if isinstance(one, dict | list):
            keys = list(one) if isinstance(one, dict) else range(len(one))
            found += [(one, key) for key in keys]
            todo += [one[key] for key in keys]
    return found


def changed(draw: random.Random, value: Any, keys: list[str]) -> Any:
    """Parsed JSON with one to three values replaced, dropped, added or moved."""
    value = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        there = places(value)
        if not there:
            break
        owner, key = draw.choice(there)
        what = draw.random()
        if what < 0.6:
            owner[key] = copy.deepcopy(draw.choice(VALUES))
        elif what < 0.7:
            other, of = draw.choice(there)
            owner[key] = copy.deepcopy(other[of])
        elif what < 0.8:
            del owner[key]
        elif isinstance(value, dict):
            value[draw.choice(keys)] = copy.deepcopy(draw.choice(VALUES))
    return value


def spoiled(draw: random.Random, data: bytes) -> bytes:
    """A few bytes put in, left out or flipped."""
    raw = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(raw) + 1)
        raw[at : at + draw.randint(0, 3)] = draw.choice(BYTES)
    return bytes(raw)


def as_text(draw: random.Random, value: Any, keys: list[str]) -> bytes:
    """A JSON file that was valid once: mostly other values, sometimes other bytes."""
    if draw.random() < 0.8:
        return json.dumps(changed(draw, value, keys)).encode()
    return spoiled(draw, json.dumps(value).encode())


# ---- adapters ------------------------------------------------------------------------------------


@cache
def adapter_folders() -> list[tuple[str, Path]]:
    """(the base, the folder) of every golden adapter."""
    found = []
    for folder in [*(GOLDEN / name for name in ADAPTERS), *sorted((GOLDEN / "peft").iterdir())]:
        beside = folder.with_suffix(".npz")
        with np.load(beside if beside.exists() else folder / "golden.npz") as data:
            found.append((str(data["base"]), folder))
    return found


@cache
def adapter_keys() -> list[str]:
    keys: set[str] = set()
    for _, folder in adapter_folders():
        keys |= set(json.loads((folder / CONFIG).read_text()))
    return sorted(keys)


@cache
def base_of(name: str) -> Transformer:
    return load_model(GOLDEN / name)


@cache
def content(folder: Path) -> tuple[Any, dict[str, torch.Tensor], dict[str, str]]:
    file = safetensors.read(folder / TENSORS)
    tensors = {name: file.load(name).clone() for name in file.tensors}
    return json.loads((folder / CONFIG).read_text()), tensors, dict(file.metadata)


def make_adapter(draw: random.Random) -> tuple[str, bytes, bytes]:
    base, folder = draw.choice(adapter_folders())
    base_of(base)  # loaded here, so that no file's time has it
    config, tensors, metadata = content(folder)
    text, weights = json.dumps(config).encode(), dict(tensors)
    if draw.random() < 0.7:
        text = as_text(draw, config, adapter_keys())
    if draw.random() < 0.5:
        name = draw.choice(list(weights))
        tensor = weights.pop(name)
        match draw.randrange(7):
            case 0:
                weights[name + draw.choice(("", ".weight", "x", ".0"))] = tensor
            case 1:
                kind = draw.choice([k for k in safetensors.NAMES if k != torch.bool])
                weights[name] = tensor.to(kind)
            case 2:
                weights[name] = tensor > 0
            case 3:
                weights[name] = tensor.reshape(-1)
            case 4:
                weights[name] = tensor[: draw.randrange(len(tensor) + 1)].clone()
            case 5:
                weights[name] = torch.full_like(tensor, draw.choice((float("nan"), 1e38, 0.0)))
            case _:
                weights[name] = torch.zeros([0] * draw.randint(0, 4))
    raw = b"".join(bytes(part) for part in safetensors.encode(weights, metadata))
    return base, text, spoiled(draw, raw) if draw.random() < 0.1 else raw


@cache
def workplace() -> Path:
    return Path(tempfile.mkdtemp(prefix="minift-fuzz-"))


def read_adapter(data: tuple[str, bytes, bytes]) -> None:
    name, text, raw = data
    model, folder = base_of(name), workplace() / "adapter"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_bytes(text)
    (folder / TENSORS).write_bytes(raw)
    parameters = {n: id(p) for n, p in model.named_parameters()}
    try:
        load_adapter(model, folder)
        detach(model)
    finally:
        assert not names(model), "something stayed attached"
        assert active(model) is None
        left = {n: id(p) for n, p in model.named_parameters()}
        assert left == parameters, "the base is another"


# ---- run folders ---------------------------------------------------------------------------------

RUN = {
    "base": "nf4", "steps": 3, "final_loss": 0.5, "model": "name", "methods": {"LoRA": {"rank": 8}},
    "numerics": {"dtype": "bf16", "kernels": "fused", "threads": 2},
}  # fmt: skip
TEXTS = {
    "base": "name",
    "texts": {"chat_template": "{{ bos_token }}", "ends": ["</s>"], "system": "S", "pair": "{c}",
              "template": "{a}: {b}", "target": "label", "max_length": 64, "labels": ["x", "y"]},
}  # fmt: skip


def make_run(draw: random.Random) -> tuple[bytes, bytes, bytes]:
    """run.json, the adapter's minift.json and its configuration."""
    config, _, _ = content(GOLDEN / "lora_qv")
    run, texts, text = (json.dumps(value).encode() for value in (RUN, TEXTS, config))
    which = draw.random()
    if which < 0.4:
        run = as_text(draw, RUN, [*RUN, *RUN["numerics"]])  # type: ignore[misc]
    elif which < 0.8:
        texts = as_text(draw, TEXTS, [*TEXTS, *TEXTS["texts"]])  # type: ignore[misc]
    else:
        text = as_text(draw, config, adapter_keys())
    return run, texts, text


def read_run(data: tuple[bytes, bytes, bytes]) -> None:
    run, texts, text = data
    folder = workplace() / "run"
    adapter = folder / "adapter"
    if not adapter.exists():
        adapter.mkdir(parents=True)
        shutil.copyfile(GOLDEN / "lora_qv" / TENSORS, adapter / TENSORS)
    (folder / "run.json").write_bytes(run)
    (adapter / FILE).write_bytes(texts)
    (adapter / CONFIG).write_bytes(text)
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        adapter_info(folder, Console())
    assert all(line.isprintable() for line in shown.getvalue().split("\n"))
    assert base_in(adapter) in (None, "dense", "int8", "nf4", "gguf")
    assert dtype_in(adapter) in (None, "float32", "float64", "bf16")


# ---- data files ----------------------------------------------------------------------------------

PLAIN = [
    ("jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "c\\n", "completion": "\\u00e9"}\n'),
    ("jsonl", b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content":'
              b' "b"}]}\n\n{"messages": [{"role": "assistant", "content": "c"}]}'),
    ("jsonl", b'{"text": "a", "text_pair": "b", "label": 0}\n{"text": "c", "text_pair": "d", '
              b'"label": "good"}\n'),
    ("csv", b'text,label,"text_pair"\n"a ""film""\n",good,x\nb,0,"y,\n"\n'),
    ("csv", b"prompt,completion\r\na,b\r\n\r\nc,d"),
    ("tsv", b'text\tlabel\na\tgood\n"b\t"\t1\n'),
    ("json", b'[{"text": "a", "x": "\\""},\n {"text": "b"}]'),
    ("jsonl", b'{"conversations": [{"from": "gpt", "value": "b"}]}'),
    ("txt", b"one\ntwo\n\n\nthree\n \n\xc3\xa9"),
]  # fmt: skip
OPTIONS: list[dict[str, Any]] = [
    {},
    {"template": "{text}", "target": "label", "labels": ("bad", "good")},
    {"template": "{text}", "target": "label"},
    {"template": "{prompt}!", "target": "completion"},
    {"template": "{text}", "pair": "{text_pair}", "target": "label", "labels": ("bad", "good")},
    {"labels": ("a", "b")},
]


def make_data(draw: random.Random) -> tuple[str, bytes, dict[str, Any]]:
    suffix, data = draw.choice(PLAIN)
    if suffix == "jsonl" and draw.random() < 0.5:
        rows = [json.loads(line) for line in data.splitlines() if line.strip()]
        keys = ["text", "prompt", "completion", "messages", "label", "text_pair"]
        rows[draw.randrange(len(rows))] = changed(draw, rows[0], keys)
        data = "\n".join(json.dumps(row) for row in rows).encode()
    elif draw.random() < 0.2:
        data = spoiled(draw, data * draw.randint(2, 40))
    elif draw.random() < 0.1:
        data = data.decode().encode(draw.choice(("utf-16", "utf-16-le", "utf-16-be", "utf-32")))
    else:
        data = spoiled(draw, data)
    return suffix, data, draw.choice(OPTIONS)


def read_data(data: tuple[str, bytes, dict[str, Any]]) -> None:
    suffix, raw, options = data
    path = workplace() / f"data.{suffix}"
    path.write_bytes(raw)
    records = open_records(path, **options)
    for i in range(len(records)):
        assert records[i]
        assert 1 <= records.where(i) <= raw.count(b"\n") + 1
        if records.labels:
            assert records.label_index(i) in (0, 1)


# ---- configurations ------------------------------------------------------------------------------


@cache
def configs() -> list[Any]:
    found = [GOLDEN / name / "config.json" for name in ("llama_gqa", "llama_biased")]
    found += sorted((GOLDEN / "families").glob("*/config.json"))
    return [json.loads(path.read_text()) for path in found]


@cache
def config_keys() -> list[str]:
    return sorted({key for config in configs() for key in config})


def make_config(draw: random.Random) -> Any:
    return changed(draw, draw.choice(configs()), config_keys())


def read_config(data: Any) -> None:
    if type(data) is not dict:
        raise FormatError("config.json", "JSON", data, "an object", "bad-type")
    config = config_from_json(data, "config.json")
    assert 0 < config.heads * config.head_dim < 2**40


# ---- tokenizers of GGUF files --------------------------------------------------------------------


@cache
def metadata() -> list[dict[str, Any]]:
    words = tests_of("tokenizers/test_vocabulary").metadata()
    pieces = tests_of("tokenizers/test_piece_settings").metadata()
    return [words, pieces]


def make_metadata(draw: random.Random) -> dict[str, Any]:
    given = draw.choice(metadata())
    keys = [key for one in metadata() for key in one]
    more: dict[str, Any] = changed(draw, given, keys)
    return more


def read_metadata(data: dict[str, Any]) -> None:
    tokenizer = tokenizer_of(data, "memory.gguf")
    with contextlib.suppress(ValueError):  # a byte or a letter lost its token
        tokenizer.decode(tokenizer.encode("low  12\n\t é"))


# ---- all -----------------------------------------------------------------------------------------


def quietly(read: Callable[[Any], object]) -> Callable[[Any], object]:
    """Without the notices of what is passed over; any other warning is an error."""

    def silent(data: Any) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", Notice)
            return read(data)

    return silent


KINDS: dict[str, tuple[Callable[[random.Random], Any], Callable[[Any], object]]] = {
    "adapters": (make_adapter, quietly(read_adapter)),
    "GGUF tokenizers": (make_metadata, quietly(read_metadata)),
    "run folders": (make_run, quietly(read_run)),
    "data": (make_data, quietly(read_data)),
    "configurations": (make_config, quietly(read_config)),
}
