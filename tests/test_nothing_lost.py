"""Nothing on disk that minift did not write is ever removed or changed, whatever it is told.

Files of one's own are put into every kind of folder and in the place of every kind of file; then
each command, and each writer in Python, is pointed there, with --overwrite and without.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import minift
from minift.checkpoints.open import load, load_model
from minift.cli.main import main
from minift.errors import ConfigError, Notice, StorageError
from minift.model.config import ModelConfig
from minift.model.transformer import Transformer
from minift.peft.lora import LoRA
from minift.peft.methods import attach
from minift.study.verify import save_trace
from minift.train.config import TrainConfig
from minift.train.loop import fit
from minift.train.objectives.sft import SFT

GOLDEN = Path(__file__).parent / "golden"  # folders that transformers and PEFT wrote
STEPS = ("--steps", "1", "--batch-size", "1", "--threads", "1", "--quiet")


@pytest.fixture(scope="module")
def here(tiny_tokenizer, tmp_path_factory) -> Path:
    """What minift writes of a tiny model: its folder, a run, a GGUF file, a trace; and data."""
    place = tmp_path_factory.mktemp("here")
    config = ModelConfig(
        family="llama", vocab=tiny_tokenizer.vocab_size, dim=16, layers=1, heads=2, kv_heads=1,
        head_dim=8, ff=32, context=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Transformer(config)
    minift.save(model, tiny_tokenizer, place / "model")
    minift.save(model, tiny_tokenizer, place / "model.gguf")
    save_trace(model, place / "trace.safetensors")
    rows = [{"prompt": f"{i}:", "completion": " yes"} for i in range(4)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "rows.csv").write_text("text,label\n" + "".join(f"a{i},{i % 2}\n" for i in range(40)))
    assert main(["sft", *on(place), "--data", str(place / "rows.jsonl"), *STEPS, "--out",
                 str(place / "run")]) == 0  # fmt: skip
    trained_whole(place, place / "whole", False)
    return place


def on(here: Path) -> list[str]:
    return ["--model", str(here / "model")]


# ---- who writes ----------------------------------------------------------------------------------

COMMANDS = {  # -> the words before --out
    "sft": lambda h: ["sft", *on(h), "--data", h / "rows.jsonl", *STEPS],
    "classify": lambda h: ["classify", *on(h), "--data", h / "rows.csv", "--labels", "0,1", *STEPS],
    "quickstart": lambda h: ["quickstart"],
    "merge": lambda h: ["merge", h / "run"],
    "export hf": lambda h: ["export", h / "run", "--to", "hf"],
    "export gguf": lambda h: ["export", h / "run", "--to", "gguf"],
    "export gguf-lora": lambda h: ["export", h / "run", "--to", "gguf-lora"],
    "verify": lambda h: ["verify", h / "model"],
}


def adapted(here: Path) -> tuple[Transformer, object]:
    model, tokenizer = load(here / "model")
    return attach(model, LoRA(rank=1)), tokenizer


def exported(to: str, here: Path, path: Path, overwrite: bool) -> None:
    model, tokenizer = adapted(here)
    minift.export(model, tokenizer, path, to=to, overwrite=overwrite)


def trained(here: Path, path: Path, overwrite: bool) -> None:
    model, tokenizer = adapted(here)
    rows = [{"prompt": "1:", "completion": " yes"}]
    config = TrainConfig(steps=1, batch_size=1, threads=1)
    fit(model, SFT(tokenizer, rows), config, path, overwrite=overwrite)


def trained_whole(here: Path, path: Path, overwrite: bool) -> None:
    model, tokenizer = load(here / "model")
    objective = SFT(tokenizer, [{"prompt": "1:", "completion": " yes"}])
    config = TrainConfig(steps=1, batch_size=1, lr=1e-3, threads=1)
    fit(model, objective, config, path, overwrite=overwrite)


WRITERS = {
    "save": lambda h, path, o: minift.save(*load(h / "model"), path, overwrite=o),
    "save_adapter": lambda h, path, o: minift.save_adapter(adapted(h)[0], path, overwrite=o),
    "save_trace": lambda h, path, o: save_trace(load_model(h / "model"), path, overwrite=o),
    "fit": trained,
    "fit whole": trained_whole,
} | {f"export {to}": lambda h, path, o, to=to: exported(to, h, path, o)
     for to in ("hf", "gguf", "gguf-lora")}  # fmt: skip


def write(name: str, here: Path, path: Path, overwrite: bool) -> bool:
    """Have it written by a command, or by `python NAME`; -> whether it was."""
    if name.startswith("python "):
        try:
            WRITERS[name.removeprefix("python ")](here, path, overwrite)
        except (ConfigError, StorageError):
            return False
        return True
    words = [*COMMANDS[name](here), "--out", path, *["--overwrite"] * overwrite]
    code = main([str(word) for word in words])
    assert code in (0, 2)
    return code == 0


NAMES = [*COMMANDS, *(f"python {name}" for name in WRITERS)]


@pytest.fixture(autouse=True)
def _no_fetching(monkeypatch):
    def fetch(console):
        raise ConfigError("nothing is fetched here")

    monkeypatch.setattr("minift.cli.quickstart.fetch", fetch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        yield


# ---- what is there -------------------------------------------------------------------------------


def text(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine, and nobody else's\n")


def linked(folder: Path) -> None:
    text(folder.parent / "outside")
    (folder / "link").symlink_to(folder.parent / "outside")


MINE = {
    "a csv": lambda folder: text(folder / "notes.csv"),
    "a hidden file": lambda folder: text(folder / ".env"),
    "a readme": lambda folder: text(folder / "README.md"),
    "a nested folder": lambda folder: text(folder / "deep" / "deeper" / "file"),
    "an empty folder": lambda folder: (folder / "empty").mkdir(),
    "a link": linked,
    "the name of a temporary file": lambda folder: text(folder / ".minift-tmp-mine"),
    "the name of the lock": lambda folder: text(folder / ".minift-run"),
    "a model of another program": lambda folder: text(folder / "pytorch_model.bin"),
}

FOLDERS = {  # those whose files are all minift's, so that only MINE must stay
    "empty": lambda here, folder: folder.mkdir(),
    "model": lambda here, folder: shutil.copytree(here / "model", folder),
    "adapter": lambda here, folder: shutil.copytree(here / "run" / "adapter", folder),
    "run": lambda here, folder: shutil.copytree(here / "run", folder),
    "run of a whole model": lambda here, folder: shutil.copytree(here / "whole", folder),
}


def theirs(source: str, folder: Path) -> None:
    shutil.copytree(GOLDEN / source, folder)


def data_folder(folder: Path) -> None:
    for name in ("train.csv", "test.csv", "images/1.png"):
        text(folder / name)


def own_names(*names: str):
    def make(folder: Path) -> None:
        for name in names:
            text(folder / name)

    return make


THEIRS = {  # those that hold nothing of minift's
    "model of transformers": lambda folder: theirs("llama_gqa", folder),
    "adapter of PEFT": lambda folder: theirs("lora_qv", folder),
    "adapter of AdapterHub": lambda folder: shutil.copytree(
        next(path.parent for path in (GOLDEN / "adapterhub").rglob("adapter_config.json")), folder),
    "data": data_folder,
    "config of one's own": own_names("config.json"),
    "words of one's own": own_names("vocab.txt", "tokenizer.json"),
    "weights of one's own": own_names("config.json", "model.safetensors"),
    "an adapter of one's own": own_names("adapter_config.json", "adapter_model.safetensors"),
    "a run of one's own": own_names("run.json", "metrics.jsonl", "adapter/notes.txt"),
    "a run of PEFT": lambda folder: theirs("lora_qv", folder / "adapter"),
}  # fmt: skip


def snapshot(top: Path) -> dict[str, bytes | str | None]:
    """Everything below `top`: bytes of files, targets of links, None of folders."""
    found: dict[str, bytes | str | None] = {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = Path(folder) / name
            key = str(path.relative_to(top))
            found[key] = os.readlink(path) if path.is_symlink() else (
                path.read_bytes() if path.is_file() else None)  # fmt: skip
    return found


def kept(before: dict, top: Path) -> None:
    after = snapshot(top)
    for name, value in before.items():
        assert name in after, f"{name} is gone"
        assert after[name] == value, f"{name} was changed"
    left = [name for name in after if name not in before and "/.minift-tmp-" in name]
    assert not left


# ---- the tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [*FOLDERS, "run's adapter"])
def test_files_of_ones_own_in_a_folder_of_minifts(name, kind, here, tmp_path):
    for i, put in enumerate(MINE.values()):
        for overwrite in (True, False) if i == 0 else (True,):
            top = tmp_path / f"{i}{overwrite}"
            top.mkdir()
            FOLDERS["run" if kind == "run's adapter" else kind](here, top / "out")
            ours = snapshot(top)
            put(top / "out" / "adapter" if kind == "run's adapter" else top / "out")
            mine = {key: value for key, value in snapshot(top).items() if key not in ours}
            write(name, here, top / "out", overwrite)
            kept(mine, top)


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_other_programs_and_of_ones_own(name, here, tmp_path):
    for i, make in enumerate(THEIRS.values()):
        top = tmp_path / str(i)
        top.mkdir()
        make(top / "out")
        before = snapshot(top)
        for overwrite in (False, True):
            write(name, here, top / "out", overwrite)
            kept(before, top)


def test_a_file_that_comes_into_the_adapter_while_a_run_goes_on(here, tmp_path):
    def put(progress):
        (tmp_path / "r" / "adapter").mkdir(exist_ok=True)
        (tmp_path / "r" / "adapter" / ".DS_Store").write_bytes(b"mine")

    model, tokenizer = adapted(here)
    rows = [{"prompt": "1:", "completion": " yes"}]
    config = TrainConfig(steps=1, batch_size=1, threads=1)
    fit(model, SFT(tokenizer, rows), config, tmp_path / "r", watch=put)
    assert (tmp_path / "r" / "adapter" / "adapter_model.safetensors").exists()
    (place,) = (tmp_path / "r").rglob(".DS_Store")
    assert place.read_bytes() == b"mine"


@pytest.mark.parametrize("name", NAMES)
def test_single_files_of_ones_own(name, here, tmp_path):
    shutil.copy(GOLDEN / "gguf_file.gguf", tmp_path / "theirs.gguf")
    shutil.copy(GOLDEN / "llama_gqa" / "model.safetensors", tmp_path / "theirs.safetensors")
    for file in ("notes.csv", "mine.gguf", "mine.safetensors", "empty.gguf"):
        (tmp_path / file).write_text("" if file == "empty.gguf" else "mine")
    os.symlink("notes.csv", tmp_path / "link.gguf")
    before = snapshot(tmp_path)
    for file in before:
        for overwrite in (False, True):
            assert not write(name, here, tmp_path / file, overwrite), file
            write(name, here, tmp_path / file / "below", overwrite)
            assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("sft", "run"), ("classify", "run"), ("python fit", "run"),
        ("python fit", "whole"), ("python fit whole", "run"), ("python fit whole", "whole"),
        ("merge", "model"), ("export hf", "model"), ("python save", "model"),
        ("python export hf", "model"), ("python save_adapter", "run/adapter"),
        ("export gguf", "model.gguf"), ("export gguf-lora", "model.gguf"),
        ("python export gguf", "model.gguf"), ("python export gguf-lora", "model.gguf"),
        ("verify", "trace.safetensors"), ("python save_trace", "trace.safetensors"),
    ],
)  # fmt: skip
def test_what_minift_wrote_is_replaced_if_told(name, source, here, tmp_path):
    out = tmp_path / Path(source).name
    copy = shutil.copytree if (here / source).is_dir() else shutil.copy
    copy(here / source, out)
    before = snapshot(tmp_path)
    assert not write(name, here, out, False)
    assert snapshot(tmp_path) == before
    assert write(name, here, out, True)
    assert os.listdir(tmp_path) == [out.name]
