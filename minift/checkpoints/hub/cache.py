"""Models of the hub on this disk: `org/name[@revision]`, in the cache that all programs share.

    CACHE/models--ORG--NAME/refs/main                 the commit the branch was last seen at
                            snapshots/COMMIT/FILE     a link: ../../blobs/HASH
                            blobs/HASH                each file once

The layout is the hub's own (documentation, "Hub Local Cache"). Nothing is fetched here; fetch.py
does that. Whoever can write to the cache could make its links lead anywhere, so none may leave the
folder of its model.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from minift.errors import ConfigError, FormatError, one_line
from minift.formats import weight_index
from minift.storage import read_file

CONFIGS = ("config.json", "adapter_config.json")  # a model or an adapter has one of them
# The first that there is. A repository often has the same weights in several formats, or twice in
# one: only what an index names is taken, never "all .safetensors".
WEIGHTS = (
    "model.safetensors", "model.safetensors" + weight_index.END, "adapter_model.safetensors",
    "pytorch_model.bin", "pytorch_model.bin" + weight_index.END, "adapter_model.bin",
)  # fmt: skip
FILE_LIMIT = 10_000  # in a snapshot

_PART = re.compile(r"[A-Za-z0-9_](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)
_REVISION = re.compile(r"[\w+-][\w.+-]*(?:/[\w+-][\w.+-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_dir() -> Path:
    """$HF_HUB_CACHE, else $HF_HOME/hub, else huggingface/hub in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return expanded(own) if own else home_dir() / "hub"


def home_dir() -> Path:
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.environ.get("HF_HOME") or os.path.join(shared, "huggingface"))


def expanded(path: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(path))).absolute()


@dataclass(frozen=True)
class Name:
    """`org/name[@revision]`, or one file of it: `org/name/file.gguf[@revision]`."""

    org: str
    name: str
    revision: str = "main"
    file: str | None = None

    @property
    def id(self) -> str:
        return f"{self.org}/{self.name}"

    @property
    def folder(self) -> Path:
        return cache_dir() / f"models--{self.org}--{self.name}"

    @classmethod
    def parse(cls, text: str) -> Name:
        """Raises ConfigError for what cannot be a name of the hub."""
        path, at, revision = text.partition("@")
        org, _, rest = path.partition("/")
        name, _, file = rest.partition("/")
        plain = all(_PART.fullmatch(p) and "--" not in p and ".." not in p for p in (org, name))
        if not plain or (file and not (file.endswith(".gguf") and is_inside(file))):
            allowed = "org/name, org/name@revision or org/name/file.gguf"
            raise ConfigError(f'model: found "{one_line(text)}", allowed {allowed}')
        if at and (not _REVISION.fullmatch(revision) or ".." in revision or len(revision) > 200):
            allowed = "a branch, a tag or a commit"
            raise ConfigError(f'revision: found "{one_line(revision)}", allowed {allowed}')
        return cls(org, name, revision or "main", file or None)


def is_inside(path: str) -> bool:
    """Whether a name from outside stays inside the folder that it is put in, on every system."""
    parts = path.split("/")
    fine = all(p not in ("", ".", "..") and p.isprintable() and len(p) <= 200 for p in parts)
    return fine and not set(path) & set('\\:*?"<>|') and len(path) <= 500


def cached(name: str | Name) -> Path | None:
    """The snapshot folder, or the .gguf file, if all that is needed lies in the cache, else None.

    Another program may have fetched a configuration only: that is not enough. FormatError for a
    cache whose links lead out of the model's folder.
    """
    wanted = Name.parse(name) if isinstance(name, str) else name
    snapshot = wanted.folder / "snapshots" / (commit_of(wanted) or "none")
    if not snapshot.is_dir():
        return None
    check_links(snapshot, wanted)
    if wanted.file is not None:
        path = snapshot / wanted.file
        return path if path.is_file() else None
    if not any((snapshot / config).is_file() for config in CONFIGS):
        return None
    for weights in WEIGHTS:
        if (snapshot / weights).is_file():
            try:
                index = weights.endswith(weight_index.END)
                names = weight_index.read(snapshot / weights).files if index else []
            except FormatError:
                return None
            return snapshot if all((snapshot / shard).is_file() for shard in names) else None
    return None


def commit_of(wanted: Name) -> str | None:
    """What a branch or a tag stood for when it was last seen; a commit stands for itself."""
    if _COMMIT.fullmatch(wanted.revision):
        return wanted.revision
    try:
        text = read_file(wanted.folder / "refs" / wanted.revision, limit_bytes=100)
    except FormatError:
        return None
    commit = text.decode("ascii", "replace").strip()
    return commit if _COMMIT.fullmatch(commit) else None


def check_links(snapshot: Path, wanted: Name) -> None:
    """Refuse a snapshot with a link out of its model's folder. A dead link fails when opened."""
    try:
        names = os.listdir(snapshot)
    except OSError as error:
        found = os.strerror(error.errno or 0)
        raise FormatError(snapshot, "folder", found, "a readable folder", "bad-path") from None
    if len(names) > FILE_LIMIT:
        found, allowed = f"{len(names):,} files", f"at most {FILE_LIMIT:,}"
        raise FormatError(snapshot, "snapshot", found, allowed, "limit")
    inside = [wanted.file] if wanted.file is not None else []
    for path in (snapshot, *(snapshot / name for name in (*names, *inside))):
        check_inside(path, wanted.folder)


def link_root(folder: Path) -> Path:
    """How far links in a model's folder may lead: a snapshot's into its whole part of the cache."""
    real = Path(os.path.realpath(folder))
    in_cache = real.parent.name == "snapshots" and real.parents[1].name.startswith("models--")
    return real.parents[1] if in_cache else real


def check_inside(path: Path, root: Path) -> None:
    """Refuse a path whose links leave `root`."""
    real = os.path.realpath(path)
    if not Path(real).is_relative_to(os.path.realpath(root)):
        raise FormatError(
            path, "link", f"to {one_line(real)}", "links inside its folder", "bad-path"
        )
