"""What may be replaced: only what minift itself wrote.

A folder is minift's where each name in it is one that minift writes there, a plain file, and where
its weights carry minift's mark in their metadata. The names alone do not tell: a model that
somebody fetched, and an adapter by PEFT, have the very same ones. A single file is minift's where
it carries the mark. Programs that read these files pass the mark over.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable

from minift.errors import ConfigError, FormatError, one_line
from minift.formats import gguf, safetensors
from minift.storage import probe, recover

# What a run's folder holds; one of the two folders of weights.
RUN, METRICS, ADAPTER_FOLDER, MODEL_FOLDER = "run.json", "metrics.jsonl", "adapter", "model"
# The names of now, and those of earlier and later versions.
MODEL = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab"
    r"|minift)\.json|tokenizer\.model|vocab\.txt|merges\.txt|chat_template\.jinja"
    r"|model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
ADAPTER = re.compile(
    r"(adapter_config|head_config|minift)\.json|chat_template\.jinja"
    r"|(adapter_model|minift_state|adapter|model_head)\.safetensors"
)


def check_target(
    path: str | os.PathLike[str], overwrite: bool, names: re.Pattern[str] | None
) -> None:
    """Raise where `path` cannot be written, or holds what must stay; `names` are those of a folder,
    None stands for a single file."""
    if names is None:
        check_file(path, overwrite)
    else:
        check_folder(path, overwrite, names)
    probe(path)


def check_folder(path: str | os.PathLike[str], overwrite: bool, names: re.Pattern[str]) -> None:
    """Raise ConfigError unless `path` is new, empty, or, with `overwrite`, minift's own folder."""
    recover(path)
    if not os.path.exists(path):
        return
    shown = one_line(os.fspath(path), 200)
    if not os.path.isdir(path):
        raise ConfigError(f"{shown}: exists and is not a folder; choose another --out")
    check_files(path, names)
    if os.path.samefile(path, os.getcwd()):
        raise ConfigError(f"{shown}: is the current folder; choose another --out")
    if names_in(path) and not overwrite:
        raise ConfigError(f"{shown}: exists; choose another, or --overwrite")


def check_files(path: str | os.PathLike[str], names: re.Pattern[str]) -> None:
    """Raise ConfigError where a folder holds anything that minift did not write, by its name."""
    name = foreign(path, names)
    if name is not None:
        shown = one_line(os.fspath(path), 200)
        raise ConfigError(
            f"{shown}: holds {one_line(name)}, which minift did not write; choose another --out"
        )


def own_files(names: re.Pattern[str]) -> Callable[[str], None]:
    """`check_files` for `storage.write_folder`."""
    return lambda path: check_files(path, names)


def check_file(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise ConfigError unless nothing is at `path`, or, with `overwrite`, a file by minift."""
    if not os.path.lexists(path):
        return
    shown = one_line(os.fspath(path), 200)
    if os.path.isdir(path):
        raise ConfigError(f"{shown}: is a folder, allowed a file; choose another --out")
    if os.path.exists(path) and not marked(path):
        raise ConfigError(f"{shown}: exists, and minift did not write it; choose another --out")
    if not overwrite:
        raise ConfigError(f"{shown}: exists; choose another, or --overwrite")


def foreign(folder: str | os.PathLike[str], names: re.Pattern[str]) -> str | None:
    """The first name in `folder` that minift did not write; None where all is its own."""
    found = names_in(folder)
    for name in found:
        status = os.lstat(os.path.join(folder, name))
        if not names.fullmatch(name) or not stat.S_ISREG(status.st_mode):
            return name
    weights = [name for name in found if name.endswith(".safetensors")]
    for name in weights:
        if not marked(os.path.join(folder, name)):
            return name
    return None if weights or not found else found[0]


def names_in(folder: str | os.PathLike[str]) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        shown = one_line(os.fspath(folder), 200)
        raise ConfigError(
            f"{shown}: cannot be read: {error.strerror}; choose another --out"
        ) from None


def marked(path: str | os.PathLike[str]) -> bool:
    """Whether a file carries the mark of minift's writers."""
    for read, mark in ((safetensors.read, safetensors.MARK), (gguf.read, gguf.MARK)):
        try:
            facts = read(path).metadata
        except FormatError:
            continue
        return mark.items() <= facts.items()
    return False
